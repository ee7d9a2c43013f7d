"""Everything that can be checked before any expensive work: devices, images, subsets, network."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ekgsearch.artefact.recipe import Recipe
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.data.datasets import Dataset, ImageSet
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.subset import batches, split_search_subset
from ekgsearch.errors import JobError
from ekgsearch.experiment import Job
from ekgsearch.finetune.objectives.registry import OBJECTIVES, needs_of
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.section import EvaluatingSection
from ekgsearch.pipeline.devices import Devices, find_devices
from ekgsearch.pipeline.images import OpenedImages, open_images
from ekgsearch.pipeline.network import open_network
from ekgsearch.records import Costs, content_hash
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.workers.images import DataRequest, first_of_each_class
from ekgsearch.workers.spec import SearchSpec
from ekgsearch.workers.workload import Workload

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A checked job, opened.

    Attributes:
        job: the job.
        images: the images, opened in this process, and how any process opens the same ones.
        train_ids: training images in use; None for all.
        test: test images in use.
        search_ids, warmup_ids: the two subsets, image ids in their fixed order.
        recipe: the unpruned network.
        network: the same, built, with the given weights or freshly initialised.
        graph: its channel groups.
        groups: those of them that the search may cut.
        full_costs: its costs under the job's counter.
        budget: what the search aims at.
        mean, std: input normalisation in pixel units 0..255.
        devices: which kind of device does which part.
    """

    job: Job
    images: OpenedImages
    train_ids: torch.Tensor | None
    test: ImageSet
    search_ids: torch.Tensor
    warmup_ids: torch.Tensor
    recipe: Recipe
    network: nn.Module
    graph: ChannelGraph
    groups: tuple[ChannelGroup, ...]
    full_costs: Costs
    budget: Budget
    mean: tuple[float, ...]
    std: tuple[float, ...]
    devices: Devices

    @property
    def data(self) -> DataRequest:
        """How any process opens the same images."""
        return self.images.request

    @property
    def dataset(self) -> Dataset:
        """The images, opened in this process."""
        return self.images.dataset

    @property
    def device(self) -> str:
        """Kind of device of this process, "cpu" or "cuda"."""
        return self.devices.here

    @property
    def num_local_devices(self) -> int:
        """Devices that work in this process holds: one GPU, or as many cores as it has threads."""
        return self.job.cluster.threads if self.device == "cpu" else 1

    @property
    def evaluating(self) -> EvaluatingSection:
        """The section of a method that evaluates networks."""
        section = self.job.search
        assert isinstance(section, EvaluatingSection), f"search.method {section.method} evaluates no networks"
        return section

    @property
    def search_spec(self) -> SearchSpec:
        """The batches of the search subset and how they are evaluated: the exact spec in the tier of the job."""
        return self.spec_of(self.evaluating)

    @property
    def exact_spec(self) -> SearchSpec:
        """The same batches and rules, evaluated exactly, also where the job has chosen a faster tier."""
        return self.search_spec.exact

    def spec_of(self, section: EvaluatingSection) -> SearchSpec:
        """The batches of the search subset and how they are evaluated where a section says it."""
        parts = batches(self.search_ids, section.batch_size)
        return SearchSpec.of(
            section,
            run=self.job.run_name,
            batches=tuple((index, tuple(part.tolist())) for index, part in enumerate(parts)),
            seed=sub_seed(self.job.seed, "criterion"),
            prefix_bytes=1_000_000 * self.job.cluster.prefix_mb,
        )

    @property
    def network_identity(self) -> dict[str, Any]:
        """The unpruned network, names and shapes of its state, and its input normalisation, as a JSON value."""
        state = [[name, *_form(tensor)] for name, tensor in self.network.state_dict().items()]
        return {
            **self.recipe.identity(),
            "state": content_hash(state),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @property
    def train_id_list(self) -> tuple[int, ...] | None:
        """Ids of the training images in use; None for all."""
        return None if self.train_ids is None else tuple(self.train_ids.tolist())

    @property
    def loader(self) -> str:
        """Who makes the views of training images, as far as it can change a result."""
        is_decoded = not isinstance(self.dataset.train, EncodedImages)
        loader = self.data.loading.loader
        return "torch" if is_decoded and loader == "auto" else loader

    def selection(self, ids: Tensor | None) -> str:
        """Hash of some training images in their order; of all of them where no ids are given."""
        return content_hash([self.dataset.train.content_hash, None if ids is None else ids.tolist()])

    def workload(self, weights: Path, device: str | None = None) -> Workload:
        """What a process needs to open the network with these weights, on a kind of device; None for that of here."""
        return Workload(
            recipe=self.recipe,
            weights=weights,
            data=self.data,
            mean=self.mean,
            std=self.std,
            device=device or self.device,
            threads=self.job.cluster.threads_per_worker,
        )


def set_up(job: Job, cluster_has_gpus: bool | None = None, *, in_run: bool = False) -> Setup:
    """Open and check what a job names.

    Args:
        job: the job.
        cluster_has_gpus: whether a node of the cluster that was named has a GPU; None where nobody has asked it.
        in_run: whether the job is started or continued in its run directory; see `open_images`.

    Raises:
        JobError, DataError, NetworkError, BudgetError, StorageError: something is missing, damaged or out of reach.
    """
    devices = find_devices(job, cluster_has_gpus)
    _check_package(job)
    images = open_images(job, in_run=in_run)
    dataset = images.dataset
    train_ids = first_of_each_class(dataset.train.labels, job.data.train_images, "train")
    _check_batch_sizes(job, len(dataset.train) if train_ids is None else len(train_ids))
    search_ids, warmup_ids = split_search_subset(
        dataset.train.labels,
        search_per_class=job.search.images_per_class,
        warmup_per_class=job.warmup.images_per_class if job.warmup.epochs else 0,
    )
    opened = open_network(job, dataset.num_classes, dataset.image_shape)
    mean, std = opened.sidecar.normalisation or (dataset.mean, dataset.std)
    return Setup(
        job=job,
        images=images,
        train_ids=train_ids,
        test=images.request.evaluated(dataset),
        search_ids=search_ids,
        warmup_ids=warmup_ids,
        recipe=opened.recipe,
        network=opened.network,
        graph=opened.graph,
        groups=opened.groups,
        full_costs=opened.full_costs,
        budget=opened.budget,
        mean=mean,
        std=std,
        devices=devices,
    )


def _form(tensor: Tensor) -> tuple[str, list[int]]:
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape)


def _check_package(job: Job) -> None:
    """Refuse an objective whose package is missing; it would be needed only after the search."""
    package = needs_of(job.finetune.objective).package
    if package is not None and importlib.util.find_spec(package.partition(" ")[0]) is None:
        names = " and ".join(name for name in OBJECTIVES if needs_of(name).package == package)
        raise JobError(
            f"the objectives {names} need {package}, found none; install it "
            f"(pip install '{package.replace(' ', '')}'), or use ekg"
        )


def _check_batch_sizes(job: Job, num_images: int) -> None:
    """Refuse a batch that the training images do not fill."""
    sections = {"pretrain": job.pretrain} if job.net.trains_first else {}
    for name, section in {**sections, "finetune": job.finetune}.items():
        if section.batch_size > num_images and section.epochs:
            raise JobError(
                f"{name}.batch_size = {section.batch_size}, but only {num_images} training images are in use; lower it"
            )
