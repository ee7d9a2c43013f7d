"""Progress, timeline and budget of a sweep while it runs."""

import logging
import time
from collections.abc import Mapping

from ekgsearch.runtime.progress import Progress, duration
from ekgsearch.sweep.course import Step
from ekgsearch.sweep.job import described
from ekgsearch.sweep.record import Entry, Record
from ekgsearch.sweep.results import metrics_of, spent_hours, trial_hours
from ekgsearch.sweep.timeline import Timeline

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""Time between two looks at what the trials have cost."""


class Watch:
    """Shows how a sweep goes on, and says when it is to end.

    Attributes:
        end_reason: why no trial is begun any more and running ones are stopped; empty while the sweep goes on.
        has_failed: whether that is since too many trials failed.
    """

    def __init__(self, record: Record, total: int) -> None:
        """Begin a call of the command.

        Args:
            record: of the sweep.
            total: trials that there will be at most.
        """
        self.end_reason = ""
        self.has_failed = False
        self._record = record
        self._budget = record.sweep.section.budget
        self._timeline = Timeline(record.sweep.folder)
        done = sum(entry.is_over for entry in record.entries.values())
        if done:
            log.info("%d of %d trials were finished or stopped before", done, total)
        self._progress = Progress("sweep", max(total - done, 0), "trials", log)
        self._start = self._looked = time.monotonic()
        self._num_failed = 0
        self._running: dict[str, Entry] = {}

    def began(self, entry: Entry) -> None:
        """A trial is handed to Ray Tune, which starts it when there is room."""
        self._running[entry.trial.name] = entry

    def add(self, name: str, step: Step) -> None:
        """A step of a trial."""
        self._timeline.add(name, step)
        self._show()

    def ended(self, entry: Entry) -> None:
        """A trial has ended; the record says how."""
        name = entry.trial.name
        self._running.pop(name, None)
        if entry.state not in ("finished", "failed"):
            self._timeline.end(name, entry.state)
        words = described(entry.trial.values)
        if entry.state == "finished":
            log.info("trial %s (%s): finished, %s", name, words, _shown(entry.metrics))
        else:
            level = logging.WARNING if entry.state in ("failed", "died") else logging.INFO
            state = "" if entry.reason.startswith(entry.state) else f"{entry.state}: "
            log.log(level, "trial %s (%s): %s%s", name, words, state, entry.reason)
        self._progress.advance(entry.is_over)
        self._show()
        self._num_failed += entry.state in ("failed", "died")
        most = self._record.sweep.section.max_failed
        if self._num_failed > most:
            self.has_failed = True
            self.end(
                f"{self._num_failed} trials failed, more than tune.max_failed = {most}; their reasons are above, and "
                "another call tries them again"
            )

    def look(self, *, at_once: bool = False) -> None:
        """Compare what the trials have cost by now with the budget.

        Args:
            at_once: look in any case, not only where the last look was `LOOK_SECONDS` ago.
        """
        now = time.monotonic()
        if self.end_reason or (now - self._looked < LOOK_SECONDS and not at_once):
            return
        self._looked = now
        minutes, hours = self._budget.wall_minutes, self._budget.device_hours
        if minutes is not None and now - self._start >= 60 * minutes:
            self.end(f"tune.budget.wall_minutes = {minutes:g} are over; the same command goes on for as long again")
        elif hours is not None and (spent := self.spent()) >= hours:
            self.end(f"{spent:.3g} device-hours are spent of tune.budget.device_hours = {hours:g}; raise it to go on")
        self._show()

    def end(self, reason: str) -> None:
        """Begin no further trial, and stop those that run."""
        if not self.end_reason:
            log.warning("the sweep ends here: %s; what is finished is kept", reason)
        self.end_reason = self.end_reason or reason

    def spent(self) -> float:
        """Device-hours of all trials by now."""
        return spent_hours(entry.trial.job.run_dir for entry in self._record.entries.values())

    def metrics_of(self, entry: Entry) -> Mapping[str, float]:
        """What a finished trial is judged by, but for its latency."""
        hours = trial_hours(one.trial.job.run_dir for one in self._record.entries.values())
        return metrics_of(entry.trial.job.run_dir, hours[entry.trial.name])

    def close(self) -> None:
        """Show the last state."""
        self._progress.close()
        log.info("sweep: %s in this call", duration(time.monotonic() - self._start))

    def _show(self) -> None:
        accuracies = [entry.metrics["accuracy"] for entry in self._record.entries.values() if entry.metrics]
        best = {"best accuracy": f"{max(accuracies):.2f} %"} if accuracies else {}
        self._progress.advance(0, running=len(self._running), **best)


def _shown(metrics: Mapping[str, float]) -> str:
    """Metrics of a finished trial in words."""
    return (
        f"accuracy {metrics['accuracy']:.2f} %, {metrics['kept_macs'] / 1e6:.4g} M MACs, "
        f"{metrics['kept_params'] / 1e3:.4g} k parameters, {3600 * metrics['device_hours']:.4g} device-seconds alone"
    )
