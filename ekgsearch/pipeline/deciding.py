"""Decisions of a search: computed by the search workers, or taken from a phase store."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ekgsearch.errors import StorageError
from ekgsearch.methods.base import BatchwiseEvaluator, Decision, Search, decision_from_record
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.found import SEARCH
from ekgsearch.pipeline.materials import materials
from ekgsearch.pipeline.phase_store import PhaseStore
from ekgsearch.pipeline.search_work import search_work
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.listener import Advanced, IterationMade

log = logging.getLogger(__name__)


class Deciding:
    """Adds decisions to those of a run until its budget is met.

    Attributes:
        made: all decisions, in order; each is in the journal.
        search: that of the method.
    """

    def __init__(self, context: RunContext, made: list[Decision]) -> None:
        """Go on after decisions that are in the journal.

        Args:
            context: the run.
            made: its decisions so far; extended.
        """
        self.made = made
        self._context = context
        self._setup = context.setup
        self._workers: Callable[[], BatchwiseEvaluator] | None = None
        self.search: Search = self._setup.job.search.open(materials(context, self._setup.job.search, self._evaluator))
        self._full = self._setup.budget.measured(self._setup.full_costs.macs, self._setup.full_costs.params)
        self._tell(self._removed)

    def compute(self) -> None:
        """Let the workers decide until the budget is met."""
        with ExitStack() as work:
            for decision in self._computing(work):
                self._take(decision)

    def share(self, store: PhaseStore, common: str, own: str) -> None:
        """Take every decision that the store has, and store those that it lacks.

        Of several runs that need the same decision at once, one computes it; the others take it over as it comes. A
        decision that the budget may have a say in is shared with runs to the same budget only.

        Args:
            store: where runs share phases.
            common: key of the decisions that do not depend on the budget.
            own: key of those that do.

        Raises:
            StorageError: the store has another decision than one that this run has made, or, where the run verifies,
                than one that it makes again.
        """
        self._store_made(store, common, own)
        while not self._is_over:
            key = own if self.search.depends_on_budget(self.made) else common
            number = len(self.made)
            found = None if self._context.verifies else store.decision(key, number)
            if found is not None:
                self._adopt(*found)
                continue
            if key == own:  # whoever searches to this budget holds the claim on the phase
                self._compute_and_store(store, key)
                continue
            with self._claimed(store, key, number) as found:
                if found is not None:
                    self._adopt(*found)
                else:
                    self._compute_and_store(store, key)

    def _store_made(self, store: PhaseStore, common: str, own: str) -> None:
        """Store what this run has decided before: what follows in the store belongs to the same decisions."""
        for number, decision in enumerate(self.made):
            key = own if self.search.depends_on_budget(self.made[:number]) else common
            self._keep(store, key, decision, is_made=True)

    def _keep(self, store: PhaseStore, key: str, decision: Decision, *, is_made: bool) -> tuple[dict[str, Any], str]:
        """Store a decision unless one is stored; returns the one that is, and the run that made it."""
        number, own = decision.iteration, decision.to_record()
        record, producer = store.keep_decision(key, number, own, self._setup.job.run_name)
        if record != own and (is_made or self._context.verifies):
            raise StorageError(
                f"decision {number} of the search is another one in {store.uri}, made by {producer!r}, than here "
                f"({record['group']!r} there, {decision.group!r} here): this run began before it shared phases, or its "
                "machine rounds otherwise; leave phases.uri out, or start another run (--set output=...)"
            )
        return record, producer

    def _compute_and_store(self, store: PhaseStore, key: str) -> None:
        """Decide for as long as the store has nothing under the key, and decisions belong to it."""
        is_common = not self.search.depends_on_budget(self.made)
        with ExitStack() as work:
            for decision in self._computing(work):
                record, producer = self._keep(store, key, decision, is_made=False)
                if record != decision.to_record():
                    self._adopt(record, producer)
                    return
                self._take(decision)
                if is_common and self.search.depends_on_budget(self.made):
                    return

    @contextmanager
    def _claimed(self, store: PhaseStore, key: str, number: int) -> Iterator[tuple[dict[str, Any], str] | None]:
        """The right to decide, or the decision that another run has stored meanwhile."""
        context = self._context
        if context.verifies:
            yield None
            return
        with store.decision_claimed(
            key,
            number,
            producer=self._setup.job.run_name,
            check=context.check,
            on_wait=context.teams.release,
        ) as found:
            yield found

    def _computing(self, work: ExitStack) -> Iterator[Decision]:
        """Decisions of the method; its time is charged to the search for as long as `work` is open."""
        self._workers = work.enter_context(search_work(self._context, SEARCH, self._setup.job.search))
        yield from self.search.run(tuple(self.made))

    def _evaluator(self) -> BatchwiseEvaluator:
        """The search workers that have been started last."""
        assert self._workers is not None, "decisions are computed where there are workers"
        return self._workers()

    def _adopt(self, record: Mapping[str, Any], producer: str) -> None:
        """Take a decision that another run, or this one before, has made."""
        current = self.made[-1].subnetwork if self.made else self._setup.graph.full()
        if producer != self._setup.job.run_name:
            self._context.ledger.shared(PhaseKind.SEARCH, SEARCH, producer)
        self._take(decision_from_record(record, current))

    def _take(self, decision: Decision) -> None:
        """Commit a decision and tell it."""
        before = self._removed
        self._context.journal.append("iteration", **decision.to_record())
        self.made.append(decision)
        self._tell(self._removed - before)
        self._context.listener.hear(
            IterationMade(
                phase=SEARCH,
                iteration=decision.iteration,
                group=decision.group,
                loss=None if decision.evaluation is None else decision.evaluation.loss,
                macs=decision.macs,
                params=decision.params,
                reduction=self._removed / self._full,
            )
        )
        self._context.check()

    def _tell(self, removed: int) -> None:
        shown: dict[str, float | int | str] = {}
        if self.made:
            last = self.made[-1]
            shown = {"iteration": last.iteration, "group": last.group}
            if last.evaluation is not None:
                shown["loss"] = f"{last.evaluation.loss:.4f}"
            shown["reduction"] = f"{self._removed / self._full:.1%}"
        budget = self._setup.budget
        self._context.listener.hear(
            Advanced(
                label="search",
                done=removed,
                total=round(self._full - budget.limit) if budget.is_limit else self._removed,
                unit=f"{budget.unit} removed",
                shown=shown,
                is_end=self._is_over,
            )
        )

    @property
    def _removed(self) -> int:
        """Cost that is removed by now, in the unit of the budget."""
        return self._full - self._setup.budget.measured(self.made[-1].macs, self.made[-1].params) if self.made else 0

    @property
    def _is_over(self) -> bool:
        return self.search.is_over(self.made)
