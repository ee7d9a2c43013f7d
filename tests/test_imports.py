"""What importing costs and needs: the command line loads nothing heavy, the core runs without its big companions."""

import resource
import subprocess
import sys

import pytest

CORE = [
    "ekgsearch.bank.bank",
    "ekgsearch.bank.build",
    "ekgsearch.bench.distillation",
    "ekgsearch.bench.loader",
    "ekgsearch.bench.search",
    "ekgsearch.channels.graph",
    "ekgsearch.channels.masks",
    "ekgsearch.channels.slim",
    "ekgsearch.channels.cost",
    "ekgsearch.data.datasets",
    "ekgsearch.data.loader",
    "ekgsearch.data.views",
    "ekgsearch.finetune.loop",
    "ekgsearch.maths.distillation",
    "ekgsearch.nets.zoo",
    "ekgsearch.pipeline.run",
    "ekgsearch.records",
    "ekgsearch.rows",
    "ekgsearch.methods.ekg.search",
    "ekgsearch.methods.evaluate",
    "ekgsearch.storage.objects",
]

BLOCKED = ("ray", "nvidia.dali", "lightly", "torchvision", "obstore")

PROGRAM = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in {blocked!r}):
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Refuse())
for name in {core!r}:
    importlib.import_module(name)
import torch
from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.slim import slim
graph = analyse(build(zoo_factory("resnet20", 10, (3, 8, 8)), seed=0), (3, 8, 8))
print(slim(graph, graph.full()).eval()(torch.zeros(1, 3, 8, 8)).shape)
"""


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)


def test_the_core_runs_where_ray_dali_lightly_and_torchvision_are_absent() -> None:
    finished = python(PROGRAM.format(blocked=BLOCKED, core=CORE))
    assert finished.returncode == 0, finished.stderr
    assert "torch.Size([1, 10])" in finished.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import ekgsearch",
        "import ekgsearch.cli as c; c.cli(['--help'], standalone_mode=False)",
        "import ekgsearch.sections.training",
        "import ekgsearch.methods.ekg.section, ekgsearch.methods.epruner.section, ekgsearch.methods.baselines.section",
    ],
)
def test_importing_and_help_load_neither_torch_nor_ray(statement: str) -> None:
    heavy = {"torch", "ray", "pandas", "pyarrow", "matplotlib"}
    loaded = f"sorted({{name.split('.')[0] for name in sys.modules}} & {heavy})"
    finished = python(f"import sys\n{statement}\nprint('loaded:', {loaded})")
    assert finished.returncode == 0, finished.stderr
    assert "loaded: []" in finished.stdout


def test_help_answers_at_once() -> None:
    """In processor time of the child, which other work on the machine hardly changes."""
    seconds = []
    for _ in range(3):
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        python("from ekgsearch.__main__ import main; import sys; sys.argv = ['ekgsearch', '--help']; main()")
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)
    assert min(seconds) < 0.5
