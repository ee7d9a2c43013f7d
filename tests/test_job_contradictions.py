"""What does not go together in a job is refused before anything is opened."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.limit import Limit
from ekgsearch.errors import JobError
from ekgsearch.jobfile import load_job
from ekgsearch.sections.data import KNOWN_IMAGES, DataSection
from ekgsearch.storage.secrets import redact

GOOD = """\
output: results/test
net: {name: resnet20}
data: {name: cifar10}
search: {reduction: 0.5}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(GOOD)
    return file


DIGITS = "data.name=digits warmup.images_per_class=100"

CASES: dict[str, list[tuple[str, str, str]]] = {
    "compete": [
        ("search.racing=0.05", "search.racing=0.05 search.compete=score_per_cost", "drops candidates by their scores"),
        (
            "search.preset=private_l2",
            "search.preset=private_l2 search.quirks=[rounded_rates]",
            "search.shortlist = all and search.quirks: that of the published program is otsu",
        ),
        (
            "search.quirks=[rounded_rates]",
            "search.quirks=[rounded_rates] search.compete=score_per_cost",
            "that of the published program is score",
        ),
    ],
    "stages": [
        (
            "finetune.epochs=3 finetune.baselines=[{'method':l1,'stages':3}]",
            "finetune.epochs=2 finetune.baselines=[{'method':l1,'stages':3}]",
            "finetune.epochs = 2, but each of 3 stages needs one",
        ),
        (
            "search={'method':l1,'reduction':0.5,'stages':3} finetune.objective=plain",
            "search={'method':l1,'reduction':0.5,'stages':3} finetune.objective=plain finetune.epochs=2",
            "each of 3 stages needs one",
        ),
        (
            "search={'method':l1,'reduction':0.5,'stages':3,'stop_below':4} finetune.objective=plain",
            "search={'method':l1,'reduction':0.5,'stop_below':4} finetune.objective=plain",
            "search.stop_below = 4 ends a cut in stages; give search.stages, too",
        ),
        (
            "finetune.baselines=[{'method':l1,'stages':3,'stop_below':4}]",
            "finetune.baselines=[{'method':l1,'stop_below':4}]",
            "finetune.baselines: stop_below = 4 ends a cut in stages",
        ),
        (
            "finetune.baselines=[{'method':l1,'ranking':per_layer}]",
            "finetune.baselines=[{'method':uniform,'ranking':per_layer}]",
            "uniform ranks nothing",
        ),
        (
            "finetune.baselines=[l1,{'method':l1,'groups':private}]",
            "finetune.baselines=[l1,{'method':l1}]",
            "expected each baseline once, found l1 more often",
        ),
    ],
    "budget": [
        ("search.reduction=null search.budget=1", "search.reduction=null", "give exactly one of search.reduction"),
        ("search.reduction=0.4", "search.budget=100", "give exactly one of search.reduction"),
    ],
    "weights": [
        ("pretrain.epochs=1", "pretrain.epochs=0", "net.weights is null and pretrain.epochs is 0"),
        ("pretrain.epochs=0 net.weights=a", "pretrain.epochs=0 net.weights=null", "give weights or epochs"),
    ],
    "folder": [
        ("data.name=image_folder data.root=a", "data.name=image_folder", "data.root is null: data.name image_folder"),
        ("data.name=parquet data.root=a", "data.name=parquet", "data.root is null: data.name parquet"),
        ("data.name=cifar100", "data.name=cifar10 data.root=''", "data.root = '': must not be empty"),
    ],
    "adopted": [("search_run=results/other", "search_run=results/test", "'results/test' is the run directory itself")],
    "milestones": [
        (f"{section}.milestones={good}", f"{section}.milestones={bad}", f"{section}.milestones = {words}")
        for section in ("pretrain", "finetune")
        for good, bad, words in (
            ("[1.0e-9]", "[0]", r"[0.0]: expected shares of the epochs, each above 0 and below 1"),
            ("[0.999999]", "[1]", r"[1.0]: expected shares of the epochs, each above 0 and below 1"),
            ("[0.3, 0.31]", "[0.3, 0.3]", r"[0.3, 0.3]: expected ascending shares of the epochs, each once"),
            ("[]", "[0.6, 0.3]", r"[0.6, 0.3]: expected ascending shares"),
        )
    ],
    "average": [
        (
            "finetune.epochs=5 finetune.average_last=5",
            "finetune.epochs=5 finetune.average_last=6",
            "finetune.average_last = 6, but there are only finetune.epochs = 5",
        )
    ],
    "rise": [
        (
            f"{section}.epochs=5 {section}.warmup_epochs=5",
            f"{section}.epochs=5 {section}.warmup_epochs=6",
            f"{section}.warmup_epochs = 6, but there are only {section}.epochs = 5",
        )
        for section in ("pretrain", "finetune")
    ],
    "shares": [
        (
            "finetune.batch_size=24 finetune.workers=4 finetune.accumulate=3",
            "finetune.batch_size=24 finetune.workers=4 finetune.accumulate=4",
            "finetune.batch_size = 24 does not divide over finetune.workers = 4 x finetune.accumulate = 4",
        ),
        (
            "finetune.objective=byol finetune.batch_size=8 finetune.workers=4",
            "finetune.objective=byol finetune.batch_size=8 finetune.workers=8",
            "finetune.objective byol compares images: expected at least 2 per process and micro-batch, found 1",
        ),
        (
            "finetune.objective=ekg finetune.batch_size=8 finetune.workers=8",
            "finetune.objective=contrastive finetune.batch_size=8 finetune.accumulate=8",
            "finetune.objective contrastive compares images",
        ),
    ],
    "batches": [
        ("finetune.batch_size=50000", "finetune.batch_size=50001", "finetune.batch_size = 50001, but only 50000"),
        ("pretrain.batch_size=50000", "pretrain.batch_size=50001", "pretrain.batch_size = 50001, but only 50000"),
        (
            "data.train_images=128 pretrain.batch_size=999 net.weights=a",
            "data.train_images=127 net.weights=a",
            "finetune.batch_size = 128, but only 127 training images are in use",
        ),
        (
            "data.train_images=100 pretrain.batch_size=100 finetune.epochs=0",
            "data.train_images=99 pretrain.batch_size=100 finetune.epochs=0",
            "pretrain.batch_size = 100, but only 99",
        ),
        (f"{DIGITS} finetune.batch_size=1437", f"{DIGITS} finetune.batch_size=1438", "but only 1437"),
    ],
    "subsets": [
        (
            "search.images_per_class=4744",
            "search.images_per_class=4745",
            "search.images_per_class = 4745 and warmup.images_per_class = 256, but a class of cifar10 has only 5000",
        ),
        (
            "search.images_per_class=5000 warmup.epochs=0",
            "search.images_per_class=5001 warmup.epochs=0",
            "search.images_per_class = 5001 and warmup.images_per_class = 0, but",
        ),
        (
            "data.name=cifar100 search.images_per_class=244",
            "data.name=cifar100 search.images_per_class=245",
            "only 500",
        ),
        (f"{DIGITS} search.images_per_class=39", f"{DIGITS} search.images_per_class=40", "digits has only 139"),
    ],
    "images": [
        ("data.image_size=32", "data.image_size=33", "data.image_size = 33: the images of cifar10 have 32 pixels"),
        ("data.image_size=null", "data.image_size=31", "data.image_size = 31: the images of cifar10 have 32 pixels"),
        (f"{DIGITS} data.image_size=8", f"{DIGITS} data.image_size=7", "the images of digits have 8 to 4096 pixels"),
        ("data.train_images=50000", "data.train_images=50001", "data.train_images = 50001, but cifar10 has 50000"),
        (f"{DIGITS} data.train_images=1437", f"{DIGITS} data.train_images=1438", "digits has 1437 training images"),
    ],
    "network": [
        ("net.name=resnet110", "net.name=resnet111", "'resnet111': must be one of resnet20, .*did you mean resnet110?"),
        ("net.shortcut=option_a", "net.shortcut=option_a net.name=resnet50", "shortcut 'option_a' exists for"),
        (f"{DIGITS} net.name=vgg16", f"{DIGITS} net.name=vgg16 data.image_size=15", "at least 16x16 pixels"),
        (
            "data.name=image_folder data.root=a net.name=vgg16",
            "data.name=image_folder data.root=a net.name=vgg16 data.image_size=15",
            "net.name = vgg16 on data.name = image_folder: .* found input_shape (3, 15, 15)",
        ),
        (
            f"{DIGITS} net.padding=tf_same data.image_size=20",
            f"{DIGITS} net.padding=tf_same data.image_size=18",
            "are multiples of 4",
        ),
        (
            f"{DIGITS} search.quirks=reference data.image_size=18 net.weights=a",
            f"{DIGITS} search.quirks=reference data.image_size=18",
            "are multiples of 4",
        ),
        ("net.padding=torch net.name=vgg16", "net.padding=tf_same net.name=vgg16", "padding 'tf_same' exists for"),
    ],
    "method": [
        (
            f"search.method=uniform finetune.objective={good}",
            f"search.method=uniform finetune.objective={bad}",
            f"search.method uniform leaves no interim sub-networks, so finetune.objective {bad} has no teachers",
        )
        for good, bad in (("plain", "ekg"), ("single", "contrastive"), ("single", "byol"))
    ],
    "idle": [
        ("search.evaluation=naive", "search.evaluation=naive search.slice_below=0.5", "slices nothing"),
        (
            "search.evaluation=naive search.slice_below=0",
            "search.evaluation=naive search.compile=true",
            "search.compile",
        ),
        (
            "search.quirks=[rounded_rates] search.precision=tf32",
            "search.quirks=[sequential_statistics] search.precision=tf32",
            "search.precision tf32 rounds otherwise",
        ),
        ("search.width_multiple=8", "search.width_multiple=8 search.quirks=[rounded_rates]", "knows no multiples"),
        *(
            (
                "search.method=uniform finetune.objective=plain search.unit=params",
                f"search.method=uniform finetune.objective=plain search.{name}={value}",
                f"search.{name}: unknown key.*not to uniform",
            )
            for name, value in {
                "criterion": "l1",
                "search_teacher": "none",
                "evaluation": "naive",
                "slice_below": 0.5,
                "precision": "bf16",
                "channels_last": "true",
                "compile": "true",
                "racing": 0.1,
            }.items()
        ),
    ],
    "bank": [
        ("bank.uri=s3://bucket/prefix", "bank.uri=s3://user:word@bucket/prefix", "bank.uri: the address of the store"),
        ("bank.dtype=int8", "bank.dtype=TOP32", "bank.dtype = 'TOP32': storing only the largest logits"),
    ],
}


@pytest.mark.parametrize("subject", CASES)
def test_the_last_that_goes_together_and_the_first_that_does_not(path: Path, subject: str) -> None:
    for good, bad, words in CASES[subject]:
        load_job(path, settings(good))
        with pytest.raises(JobError) as refused:
            load_job(path, settings(bad))
        lines = str(refused.value).splitlines()
        assert len(lines) == 1, lines
        place, _, told = lines[0].partition(": ")
        assert place.removeprefix("--set ") in map(redact, settings(bad)), "the option is named, not a line of the file"
        for part in words.split(".*"):
            assert part in told


def settings(text: str) -> list[str]:
    """Settings from one text; a space in front of a name begins the next."""
    parts: list[str] = []
    for part in text.split(" "):
        if "=" in part:
            parts.append(part)
        else:
            parts[-1] += f" {part}"
    return parts


def test_every_contradiction_is_told_at_once_with_its_place(path: Path) -> None:
    path.write_text(GOOD.replace("0.5}", "0.5, budget: 7}") + "finetune:\n  workers: 3\n  average_last: 101\n")
    with pytest.raises(JobError) as refused:
        load_job(path, ["pretrain.epochs=0", "data.image_size=16", "data.root=a"])
    assert [line.partition(": ")[0] for line in str(refused.value).splitlines()] == [
        f"{path}:4",
        "--set pretrain.epochs=0",
        "--set data.image_size=16",
        f"{path}:6",
        f"{path}:7",
    ]


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_what_is_known_of_a_data_set_is_what_it_has(name: str, request: pytest.FixtureRequest) -> None:
    root = None if name == "digits" else request.getfixturevalue("data_dir")
    dataset, known = open_dataset(name, root, download=False), KNOWN_IMAGES[name]
    assert known.classes == dataset.num_classes
    assert known.train == len(dataset.train)
    assert known.per_class == torch.bincount(dataset.train.labels).min()
    assert dataset.image_shape == (3, known.size, known.size)


@pytest.mark.parametrize(
    ("section", "train", "per_class"),
    [
        ({}, 1437, 139),
        ({"max_images_per_class": 7, "max_classes": 3}, 21, 7),
        ({"name": "generated", "classes": 4}, 1280, 320),
        ({"name": "generated", "classes": 4, "max_images_per_class": 5, "max_classes": 9}, 20, 5),
    ],
)
def test_what_is_known_of_a_part_of_a_data_set_is_what_it_has(
    section: dict[str, Any], train: int, per_class: int
) -> None:
    data = DataSection.model_validate(section)
    limit = Limit(data.max_classes, data.max_images_per_class)
    dataset, known = open_dataset(data.name, classes=data.classes, limit=limit), data.known
    assert known is not None
    assert (known.train, known.per_class) == (train, per_class)
    assert len(dataset.train) == train
    assert torch.bincount(dataset.train.labels).min() == per_class
    assert (known.classes, known.size) == (dataset.num_classes, dataset.image_shape[1])


def test_only_generated_pictures_take_a_number_of_classes() -> None:
    assert list(DataSection(name="digits", classes=4).contradictions()) == [
        "data.classes = 4: digits has its own number of classes; leave it out"
    ]
