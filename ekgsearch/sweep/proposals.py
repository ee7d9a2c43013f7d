"""Proposals of trials: from a list that is known at the start, or by Optuna."""

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ekgsearch.errors import StorageError
from ekgsearch.records import canonical_json
from ekgsearch.sections.tune import Entry
from ekgsearch.storage.files import make_folder
from ekgsearch.sweep.job import SweepJob, Trial
from ekgsearch.sweep.space import chosen

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

OPTUNA_FILE = "optuna.jsonl"


class Proposer(Protocol):
    """Proposes trials by number; the same number gets the same proposal again, also after a kill."""

    def has(self, number: int) -> bool:
        """Whether there may be a trial of this number."""
        ...

    def propose(self, number: int) -> Trial | None:
        """The trial of a number, from 0; None where there are no more."""
        ...

    def tell(self, number: int, metrics: Mapping[str, float] | None) -> None:
        """Learn how a trial has ended; telling it again changes nothing.

        Args:
            number: of the trial.
            metrics: what it is judged by; None where it was stopped early.
        """
        ...


class Listed:
    """Trials that are known from the start."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = trials

    def has(self, number: int) -> bool:
        """Whether the list goes on."""
        return number < len(self._trials)

    def propose(self, number: int) -> Trial | None:
        """The next of the list."""
        return self._trials[number] if number < len(self._trials) else None

    def tell(self, number: int, metrics: Mapping[str, float] | None) -> None:
        """Nothing is learned."""


class Learning:
    """Proposals of Optuna's TPE sampler, by ask and tell; its storage is a file of JSON lines in the sweep's folder.

    Every value is drawn by a sampler of its own, whose seed comes from the number of the trial and the field: so a
    proposal that was cut off by a kill is completed as it would have been, given the same trials before it.
    """

    def __init__(self, sweep: SweepJob) -> None:
        """Open the storage, or begin one.

        Raises:
            StorageError: the storage is damaged, or belongs to other metrics.
        """
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._sweep = sweep
        self.metrics = tuple(name for name in sweep.section.metrics if name != "latency")
        maximize, minimize = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        directions = [maximize if sweep.section.metrics[name] == "max" else minimize for name in self.metrics]
        make_folder(sweep.folder)
        path = sweep.folder / OPTUNA_FILE
        try:
            backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
            _release(path)  # the journal of the sweep lets one driver live
            self._study = optuna.create_study(
                study_name="sweep", storage=JournalStorage(backend), directions=directions, load_if_exists=True
            )
        except (ValueError, KeyError, OSError, optuna.exceptions.OptunaError) as error:
            raise StorageError(
                f"{path}: expected the trials of this sweep as Optuna writes them, found {error}; restore the file, or "
                "begin another sweep (--set output=...)"
            ) from error

    def has(self, number: int) -> bool:
        """Always: only the budget ends it."""
        return True

    def propose(self, number: int) -> Trial | None:
        """The trial of a number; asks for another one where the storage has none of this number yet."""
        import optuna

        known = self._study.get_trials(deepcopy=False)
        is_known = number < len(known)
        asked = optuna.trial.Trial(self._study, known[number]._trial_id) if is_known else self._study.ask()
        if asked.number != number:
            raise StorageError(
                f"{self._sweep.folder / OPTUNA_FILE} has {len(known)} trials, expected {number}: it belongs to another "
                "state of this sweep; restore it, or begin another sweep (--set output=...)"
            )
        space, fixed = self._sweep.section.space, self._sweep.fixed
        return self._sweep.trial(chosen(space, fixed, lambda name, entry: self._suggest(asked, name, entry)))

    def tell(self, number: int, metrics: Mapping[str, float] | None) -> None:
        """Tell the storage, unless it knows; a trial that was stopped early is told as pruned."""
        from optuna.trial import TrialState

        if self._study.get_trials(deepcopy=False)[number].state.is_finished():
            return
        if metrics is None:
            self._study.tell(number, state=TrialState.PRUNED)
        else:
            self._study.tell(number, [metrics[name] for name in self.metrics])

    def _suggest(self, trial: "optuna.trial.Trial", name: str, entry: Entry) -> Any:
        import optuna

        text = canonical_json([self._sweep.section.seed, trial.number, name])
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        if entry.values is not None:
            texts = [canonical_json(value) for value in entry.values]
            return entry.values[texts.index(trial.suggest_categorical(name, texts))]
        assert entry.low is not None
        assert entry.high is not None
        if entry.is_whole:
            return trial.suggest_int(name, int(entry.low), int(entry.high), step=int(entry.step or 1), log=entry.log)
        if entry.step is None:
            return trial.suggest_float(name, entry.low, entry.high, log=entry.log)
        listed = entry.listed
        assert listed is not None, "a range with a step is a list"
        return listed[trial.suggest_int(name, 0, len(listed) - 1)]


def proposer_of(sweep: SweepJob, trials: Sequence[Trial] | None) -> Proposer:
    """Who proposes the trials of a sweep.

    Args:
        sweep: the sweep.
        trials: its trials, where they are known (`SweepJob.known_trials`).

    Raises:
        StorageError: Optuna's storage is damaged.
    """
    return Learning(sweep) if trials is None else Listed(trials)


def _release(path: Path) -> None:
    """Remove the lock that a killed driver has left."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
