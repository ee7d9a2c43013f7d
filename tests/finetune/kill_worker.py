"""One of two processes that train together, with options given as JSON; run as a script by test_resume.py.

Asked to, it stops in the middle of the second epoch and waits to be killed, after rank 0 has said that it got there.
"""

import importlib.util
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as distributed

from ekgsearch.finetune.checkpoints import FolderCheckpoints
from ekgsearch.finetune.loop import train
from ekgsearch.finetune.world import World
from ekgsearch.storage.tensors import save_tensors


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(rank: int, folder: Path, options: dict, *, wait: bool) -> None:
    torch.set_num_threads(1)
    fixtures, ddp = load("conftest"), load("ddp_worker")
    rendezvous = f"file://{folder / 'rendezvous'}"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    steps: list[list[float]] = []

    def on_step(report) -> None:
        steps.append([report.epoch, report.step, float(report.loss)])
        if wait and (report.epoch, report.step) == (2, 5):
            if rank == 0:
                (folder / "reached").touch()
            time.sleep(1.0 if rank == 0 else 0.5)

    model = ddp.network(normalised=True)
    result = train(
        model,
        fixtures.make_data(),
        replace(ddp.EVEN, batch_size=8, ema_decay=0.8, **options),
        world=World.current(torch.device("cpu")),
        bank=fixtures.make_bank(),
        classifier=ddp.CLASSIFIER,
        checkpoint=FolderCheckpoints(folder / "checkpoints"),
        checkpoint_every_steps=2,
        on_step=on_step,
    )
    rows = [metrics.to_dict() for metrics in result.epochs]
    for row in rows:
        del row["wall_seconds"], row["wait_seconds"]
    (folder / f"{rank}.json").write_text(json.dumps({"epochs": rows, "steps": steps}))
    save_tensors(folder / f"ema-{rank}.safetensors", result.averages["ema"].state_dict())
    if rank == 0:
        save_tensors(folder / "final.safetensors", model.state_dict())


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[4]), wait=bool(int(sys.argv[3])))
