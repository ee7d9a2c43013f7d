"""The work of a search: its workers where it needs some, and its device-hours."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ekgsearch.methods.base import BatchwiseEvaluator
from ekgsearch.methods.section import EvaluatingSection, SearchSection
from ekgsearch.pipeline.context import RunContext
from ekgsearch.records import PhaseKind


@contextmanager
def search_work(
    context: RunContext, instance: str, section: SearchSection, weights: Path | None = None
) -> Iterator[Callable[[], BatchwiseEvaluator]]:
    """Start the search workers, if the method needs any, and charge the block to a phase.

    Args:
        context: the run.
        instance: the phase.
        section: what the method is.
        weights: of the unpruned network, which the workers open; None for those that the search starts from.

    Yields:
        A function that gives the workers.
    """
    setup = context.setup
    if not isinstance(section, EvaluatingSection):
        num_devices = setup.job.cluster.threads
        with context.charged(PhaseKind.SEARCH, instance, "cpu", num_devices) as clock, clock.working(num_devices):
            yield _nobody
        return
    workload = setup.workload(weights or context.start_weights, setup.devices.search)
    team = context.teams.get(
        workload, setup.spec_of(section)
    )  # the devices that it holds are known once it has started
    device, num_devices = setup.devices.name(setup.devices.search), context.backend.num_search_devices
    with context.charged(PhaseKind.SEARCH, instance, device, num_devices) as clock:
        team.charge(clock)
        yield lambda: team


def _nobody() -> BatchwiseEvaluator:
    raise AssertionError("a method that says it needs no workers asks for them")
