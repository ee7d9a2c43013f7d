"""Keys of the phases: which of them each field of a job changes, alone, against a table of what is meant.

The run is on paper: files follow from keys, so that a change shows in every later phase that reads what it changes.
"""

from dataclasses import replace
from pathlib import Path

import own_net
import pytest
from command_line import JOB
from data.loading import picture_folder
from paper_run import commit, paper_run

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.experiment import Job
from ekgsearch.fields import Mark, Place, places
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.setup import Setup, set_up
from ekgsearch.pipeline.study import StudyJob
from ekgsearch.storage.journal import Journal
from ekgsearch.storage.tensors import save_tensors

PHASES = (
    "pretrain",
    "warmup",
    "search",
    "bank",
    "finetune-slim",
    "finetune-plain",
    "search-uniform",
    "finetune-uniform",
    "evaluate",
)
BASE = (
    "finetune.baselines=[plain, uniform]",
    "pretrain.epochs=4",
    "finetune.epochs=8",
    "data.train_images=1400",
    "data.test_images=300",
    "cluster.threads=2",
    "cluster.device=cpu",
)

ALL = "pwsbfFuUe"
SEARCHED = "sbfFe"
TRAINED = "fFUe"
"""Phases by letter, in the order of `PHASES`: f, F and U are the three fine-tunings, u makes the uniform network."""

EXPECTED: dict[str, tuple[str, str]] = {
    "seed": ("2", ALL),
    "net.name": ("resnet56", ALL),
    "net.weights": ("{weights}", ALL),
    "net.factory": ("{factory}:other", ALL),
    "net.arguments": ("{{width: 4}}", ALL),
    "net.new_classifier": ("true", ALL),
    "net.shortcut": ("option_a", ALL),
    "net.padding": ("tf_same", ALL),
    "data.name": ("image_folder", ALL),
    "data.image_size": ("12", ALL),
    "data.channels": ("1", ALL),
    "data.classes": ("9", ALL),
    "data.max_classes": ("9", ALL),
    "data.max_images_per_class": ("100", ALL),
    "data.train_images": ("1399", ALL),
    "data.test_images": ("299", ALL),
    "data.loader": ("torch", ""),
    "pretrain.epochs": ("5", ALL),
    "pretrain.batch_size": ("65", ALL),
    "pretrain.learning_rate": ("0.06", ALL),
    "pretrain.milestones": ("[0.75]", ALL),
    "pretrain.decay": ("0.3", ALL),
    "pretrain.momentum": ("0.8", ALL),
    "pretrain.nesterov": ("false", ALL),
    "pretrain.warmup_epochs": ("1", ALL),
    "pretrain.weight_decay": ("0.001", ALL),
    "pretrain.crop": ("resized", ALL),
    "pretrain.pad": ("2", ALL),
    "pretrain.flip": ("true", ALL),
    "warmup.images_per_class": ("17", "wsbfFuUe"),
    "warmup.batch_size": ("17", "wsbfFuUe"),
    "warmup.learning_rate": ("0.01", "wsbfFuUe"),
    "warmup.weight_decay": ("0.001", "wsbfFuUe"),
    "warmup.epochs": ("0", "wsbfFuUe"),
    "search.method": ("uniform", "sfFe"),
    "search.reduction": ("0.31", "sbfFuUe"),
    "search.budget": ("1500000", "sbfFuUe"),
    "search.unit": ("params", "sbfFuUe"),
    "search.counter": ("ekg", "sbfFuUe"),
    "search.groups": ("private", "sbfFuUe"),
    "search.skip": ("[layer1.*]", "sbfFuUe"),
    "search.beta": ("0.8", "sfFe"),
    "search.late_beta": ("0.96", "sfFe"),
    "search.late_from": ("4", "sfFe"),
    "search.late_first_conv": ("true", "sfFe"),
    "search.initialisation": ("l1", "sfFe"),
    "search.norms": ("slice", "sfFe"),
    "search.ranking": ("per_layer", "sfFe"),
    "search.score_every": ("0.05", "sfFe"),
    "search.stages": ("3", "sfFe"),
    "search.stop_below": ("2.5", "sfe"),
    "search.step": ("0.3", SEARCHED),
    "search.trim": ("0.1", SEARCHED),
    "search.images_per_class": ("13", "sbfFuUe"),
    "search.batch_size": ("51", SEARCHED),
    "search.criterion": ("l1", SEARCHED),
    "search.preset": ("private_l2", "sbfFuUe"),
    "search.shortlist": ("all", SEARCHED),
    "search.compete": ("score_per_cost", SEARCHED),
    "search.search_teacher": ("single", SEARCHED),
    "search.quirks": ("[rounded_rates]", SEARCHED),
    "search.evaluation": ("naive", SEARCHED),
    "search.slice_below": ("0.5", SEARCHED),
    "search.precision": ("bf16", SEARCHED),
    "search.channels_last": ("true", SEARCHED),
    "search.compile": ("true", SEARCHED),
    "search.width_multiple": ("4", SEARCHED),
    "search.racing": ("0.05", SEARCHED),
    "search.max_candidates": ("2", SEARCHED),
    "bank.teachers": ("2", "bfe"),
    "bank.betas": ("[0.7, 0.8]", "sbfFuUe"),
    "bank.dtype": ("float32", "bfe"),
    "bank.embeddings": ("true", "bfe"),
    "bank.batch_size": ("200", "bfe"),
    "finetune.objective": ("byol", "bfe"),
    "finetune.seed": ("2", TRAINED),
    "finetune.synchronised_norm": ("true", TRAINED),
    "finetune.workers": ("2", TRAINED),
    "finetune.crop": ("resized", TRAINED),
    "cluster.threads": ("3", ALL),
    "cluster.threads_per_worker": ("2", "sbfFUe"),
    **{
        f"finetune.{name}": (value, TRAINED)
        for name, value in {
            "epochs": "9",
            "batch_size": "32",
            "learning_rate": "0.03",
            "milestones": "[0.75]",
            "decay": "0.3",
            "momentum": "0.8",
            "nesterov": "false",
            "warmup_epochs": "1",
            "weight_decay": "0.001",
            "pad": "2",
            "flip": "true",
            "temperature": "3.0",
            "teacher_gate": "ce",
            "label_smoothing": "0.1",
            "embedding_weight": "2.0",
            "contrast_temperature": "0.2",
            "negatives": "64",
            "head_width": "64",
            "projection_width": "32",
            "target_momentum": "0.9",
            "ema_decay": "0.9",
            "average_last": "2",
            "recalibrate_images": "32",
            "accumulate": "2",
            "precision": "bfloat16",
            "channels_last": "true",
            "compile": "true",
            "max_skipped": "4",
            "max_rollbacks": "2",
            "brightness": "0.1",
            "contrast": "0.1",
            "saturation": "0.1",
            "lighting": "0.2",
        }.items()
    },
}
"""For every field that can change a result: another value, and the phases whose keys it changes."""

ELSEWHERE: dict[str, str] = {
    "output": "/elsewhere",
    "search_run": "/elsewhere",
    "data.root": "/elsewhere",
    "data.download": "false",
    "data.max_bad_images": "1",
    "data.loader_threads": "1",
    "data.max_damaged": "0.5",
    "bank.uri": "/elsewhere",
    "bank.cache": "/elsewhere",
    "bank.resident": "true",
    "phases.uri": "/elsewhere",
    "data.title": "imagenet",
    "finetune.checkpoint_every_steps": "3",
    "finetune.baselines": "[uniform, plain]",
    "cluster.search_workers": "2",
    "cluster.address": "10.0.0.1:6379",
    "cluster.placement": "pack",
    "cluster.cpus_per_worker": "0.5",
    "cluster.gpus_per_worker": "0.5",
    "cluster.device": "auto",
    "cluster.max_restarts": "1",
    "cluster.start_timeout_seconds": "9",
    "cluster.timeout_seconds": "9",
    "cluster.prefix_mb": "9",
    "cluster.object_store_mb": "99",
}
"""For every field that changes no result: another value."""

ALL_IMAGES = ("data.train_images=null", "data.test_images=null")

EPRUNER = ("finetune.objective=single", "search={{method: epruner, beta: 0.9, late_beta: 0.95, late_from: 3}}")

L2 = ("finetune.objective=single", "search={{method: l2, reduction: 0.3}}")

OWN_BASE: dict[str, tuple[str, ...]] = {
    "net.factory": ("net.name=null", "net.factory={factory}:Own"),
    "net.arguments": ("net.name=null", "net.factory={factory}:Own"),
    "net.new_classifier": ("net.weights={weights}",),
    "data.classes": ("data.name=generated", *ALL_IMAGES),
    "data.max_classes": ALL_IMAGES,
    "data.max_images_per_class": ALL_IMAGES,
    "data.name": ("data.root={pictures}", "data.train_images=null", "data.test_images=null", "net.name=resnet20"),
    **{f"search.{name}": EPRUNER for name in ("beta", "late_beta", "late_from")},
    **{f"search.{name}": EPRUNER for name in ("late_first_conv", "initialisation", "norms")},
    **{f"search.{name}": L2 for name in ("ranking", "score_every", "stages")},
    "search.stop_below": ("search={{method: l2, reduction: 0.3, stages: 3}}", "finetune.objective=plain"),
    "bank.betas": ("search={{method: epruner, beta: 0.9}}", "bank.betas=[0.6, 0.7]"),
    "search.method": ("finetune.objective=single", "search={{reduction: 0.3}}"),
}
"""Fields that need other values of other fields, before and after the change."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "job.yaml").write_text(JOB.format(output=folder / "run"))
    net = zoo_factory("resnet20", 10, (3, 8, 8))
    save_tensors(folder / "weights.safetensors", build(net, seed=3).state_dict(), {})
    return folder


OPENED_ALIKE = ("pretrain.", "bank.", "finetune.")
"""Sections that nothing depends on which is opened or checked before the first phase."""


def keys_of(folder: Path, *settings: str, opened: Setup | None = None) -> dict[str, str]:
    """Keys of all phases of a job on paper, opened afresh or as another one was."""
    given = dict(setting.split("=", 1) for setting in (*BASE, *settings))
    if "search.budget" in given:
        given["search.reduction"] = "null"
    run = folder / "paper"
    run.mkdir(exist_ok=True)
    job = load_job(folder / "job.yaml", [f"{name}={value}" for name, value in given.items()])
    setup = set_up(job) if opened is None else replace(opened, job=job)
    (run / "journal.jsonl").unlink(missing_ok=True)
    with Journal.open(run / "journal.jsonl") as journal:
        context = paper_run(setup, run, journal)
        return {phase.name: commit(context, phase) for phase in context.phases}


@pytest.fixture(scope="module")
def base(folder: Path) -> dict[str, str]:
    return keys_of(folder)


@pytest.fixture(scope="module")
def opened(folder: Path) -> Setup:
    return set_up(load_job(folder / "job.yaml", BASE))


def dotted(place: Place) -> str:
    return ".".join(place)


def test_every_field_is_in_one_of_the_tables_as_its_mark_says() -> None:
    can_change = {dotted(place) for place, marks in places(Job) if Mark.NO_RESULT not in marks}
    assert can_change - {"data.root"} == EXPECTED.keys()
    assert {dotted(place) for place, marks in places(Job) if Mark.NO_RESULT in marks} | {
        "data.root"
    } == ELSEWHERE.keys()
    study = {dotted(place) for place, _ in places(StudyJob)} - {dotted(place) for place, _ in places(Job)}
    assert {name.partition(".")[0] for name in study} == {"study"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_field_changes_the_keys_of_the_phases_that_depend_on_it(
    name: str, folder: Path, base: dict[str, str], opened: Setup
) -> None:
    value, expected = EXPECTED[name]
    assert changed_by(folder, base, name, value, opened) == expected


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_field_that_changes_no_result_changes_no_key(
    name: str, folder: Path, base: dict[str, str], opened: Setup
) -> None:
    assert changed_by(folder, base, name, ELSEWHERE[name], opened) == ""


OWN = Path(own_net.__file__)


def changed_by(folder: Path, base: dict[str, str], name: str, value: str, opened: Setup) -> str:
    given = {"weights": folder / "weights.safetensors", "pictures": folder / "pictures", "factory": OWN}
    if name == "data.name":
        picture_folder(folder / "pictures", train=80)
    others = [setting.format(**given) for setting in OWN_BASE.get(name, ())]
    before = keys_of(folder, *others) if others else base
    like_base = opened if name.startswith(OPENED_ALIKE) else None
    now = keys_of(folder, *others, f"{name}={value.format(**given)}", opened=like_base)
    letters = zip(ALL, PHASES, strict=True)
    return "".join(letter for letter, phase in letters if phase in now and now[phase] != before[phase])
