"""The stated memory of a search worker holds: a worker in a process of its own stays below it, and not by far."""

import json
import subprocess
import sys

import pytest

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.memory import search_memory

WORKER = """
import json, sys
from pathlib import Path
import torch, torch.nn.functional as F
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.sliced import SlicedNetwork
from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build

name, side, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
graph = analyse(build(zoo_factory(name, 10, (3, side, side))).eval().requires_grad_(False), (3, side, side))
network = SlicedNetwork(graph, 0.9)

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def work(images):
    full = network.preparation.whole(graph.full())
    labels = torch.zeros(len(images), dtype=torch.long)
    names = [group.name for group in graph.groups[:3]]
    narrow = network.preparation.narrowed
    candidates = [(name, narrow(full, graph.full().replace(name, range(1)), name)) for name in names]
    network.branches(images, full, candidates)
    after_candidates = peak()
    walk = network.scores(images, lambda logits: F.cross_entropy(logits, labels), full)[2]
    return after_candidates, walk.num_bytes

work(torch.randn(2, 3, side, side))
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far, also that of the process which started this one
before = peak()
after_candidates, prefixes = work(torch.randn(batch, 3, side, side))
print(json.dumps({"candidates": after_candidates - before, "scores": peak() - before, "prefixes": prefixes}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(
    ("name", "side", "batch"),
    [
        ("resnet20", 32, 256),
        pytest.param("resnet56", 32, 256, marks=pytest.mark.slow),
        pytest.param("resnet50", 224, 16, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", 224, 16, marks=pytest.mark.slow),
    ],
)
def test_a_worker_stays_below_what_is_stated_and_not_by_far(name: str, side: int, batch: int) -> None:
    graph = analyse(build(zoo_factory(name, 10, (3, side, side))).eval(), (3, side, side))
    stated = search_memory(graph, images=batch, batch_size=batch, num_classes=10, prefix_bytes=2**40)
    command = [sys.executable, "-c", WORKER, name, str(side), str(batch)]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)
    assert measured["candidates"] <= stated.candidates
    assert 0.5 * stated.scores <= measured["scores"] <= stated.scores + stated.prefixes  # a walk is left, and gaps
    assert 0.5 * stated.prefixes <= measured["prefixes"] <= stated.prefixes


def test_memory_grows_with_the_batch_and_with_masked_channel_groups() -> None:
    graph = analyse(build(zoo_factory("resnet20", 10, (3, 32, 32))).eval(), (3, 32, 32))
    small = search_memory(graph, images=320, batch_size=64, num_classes=10)
    large = search_memory(graph, images=320, batch_size=256, num_classes=10)
    assert (large.scores, large.candidates) == (4 * small.scores, 4 * small.candidates)
    assert large.subset == 320 * (3 * 32 * 32 + 10 * 8)
    masked = search_memory(
        graph, images=320, batch_size=64, num_classes=10, masked_groups=frozenset({graph.groups[0].name})
    )
    assert masked.scores - small.scores == 4 * 4 * 64 * 16 * 32 * 32
    assert small.peak == small.network + small.subset + small.scores
    capped = search_memory(graph, images=320, batch_size=64, num_classes=10, prefix_bytes=1000)
    assert (capped.prefixes, capped.peak) == (1000, small.peak + 1000)
