"""A run of a sweep in a thread: its events one by one, as far as whoever asks for them lets it go."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ekgsearch.errors import EkgError, Stopped, is_out_of_memory
from ekgsearch.runtime.listener import EpochEnded, Event, IterationMade, Listener, PhaseBegun, PhaseCommitted

FINAL_NETWORK = "slim"
"""The network whose epochs count as progress: the one that a run is about."""

ACCURACY = "test_top1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that happened in a run.

    Attributes:
        event: iteration, epoch, begun, committed, finished, failed or stopped.
        phase: instance of the phase that it happened in; empty for the end of the run.
        progress: epochs of the fine-tuning that have ended; before the first, 1 - 1/(1 + iterations of the search).
        accuracy: of the slim network on the test set after this epoch, percent; None for other events.
        words: where the run is, or why it ended.
        producer: the run that has computed a phase that is committed.
        seconds: time of the event, seconds since the epoch of the machine's clock.
    """

    event: str
    phase: str = ""
    progress: float = 0.0
    accuracy: float | None = None
    words: str = ""
    producer: str = ""
    seconds: float = field(default_factory=time.time)

    @property
    def is_end(self) -> bool:
        """Whether nothing comes after it."""
        return self.event in ("finished", "failed", "stopped")


class Course:
    """A run that goes on in a thread of its own and halts after every epoch that has an accuracy.

    There it goes on when the next step is asked for, so that nothing is computed after a step that ends it. The same
    holds for a listener in between: it hears of an event when it is asked for.
    """

    def __init__(self, run: Callable[[Listener], object]) -> None:
        """Start the run.

        Args:
            run: runs a job to its end, with the listener that it is given.
        """
        self._steps: queue.Queue[Step] = queue.Queue()
        self._go_on = threading.Semaphore(0)
        self._reason = ""
        self._iterations = self._epochs = 0
        self._words = "its start"
        self._is_halted = False
        self._run = run
        self._thread = threading.Thread(target=self._work, name="trial", daemon=True)
        self._thread.start()

    def next(self, timeout: float | None = None) -> Step | None:
        """The next step; None where none comes in so many seconds."""
        if self._is_halted:
            self._is_halted = False
            self._go_on.release()
        try:
            step = self._steps.get(timeout=timeout)
        except queue.Empty:
            return None
        self._is_halted = step.accuracy is not None
        return step

    def stop(self, reason: str, patience: float) -> bool:
        """Ask the run to stop, cleanly; returns whether its thread has ended.

        Args:
            reason: who has stopped it after what, in words.
            patience: longest time to wait for it, seconds.
        """
        self._reason = self._reason or reason
        self._go_on.release()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def hear(self, event: Event) -> None:
        """Pass on an event of the run."""
        match event:
            case PhaseBegun():
                self._steps.put(self._step("begun", event.phase))
            case PhaseCommitted():
                self._words = f"phase {event.phase}"
                self._steps.put(self._step("committed", event.phase, producer=event.producer))
            case IterationMade():
                self._iterations = event.iteration
                self._words = f"iteration {event.iteration} of the search"
                self._steps.put(self._step("iteration", event.phase))
            case EpochEnded():
                self._epoch(event)

    def stop_reason(self) -> str:
        """Why the run is to stop."""
        return self._reason

    def _epoch(self, event: EpochEnded) -> None:
        self._words = f"epoch {event.epoch} of {event.phase}"
        accuracy = None
        if event.network == FINAL_NETWORK:
            self._epochs = event.epoch
            accuracy = event.metrics.get(ACCURACY)
        self._steps.put(self._step("epoch", event.phase, accuracy=accuracy))
        if accuracy is not None:
            self._go_on.acquire()

    def _step(self, event: str, phase: str = "", **values: Any) -> Step:
        progress = float(self._epochs) if self._epochs else 1 - 1 / (1 + self._iterations)
        return Step(event=event, phase=phase, progress=progress, **{"words": self._words, **values})

    def _work(self) -> None:
        try:
            self._run(self)
            end = self._step("finished")
        except Stopped as error:
            end = self._step("stopped", words=self._reason or str(error))
        except EkgError as error:
            end = self._step("failed", words="; ".join(map(str, error.args)))
        except Exception as error:
            kind = "out of memory" if is_out_of_memory(error) else type(error).__name__
            end = self._step("failed", words=f"{kind}: {error}")
        self._steps.put(end)


def as_result(step: Step) -> dict[str, Any]:
    """A step as a flat result; `as_step` gives it back."""
    values: dict[str, Any] = {
        "event": step.event,
        "phase": step.phase,
        "progress": step.progress,
        "words": step.words,
        "producer": step.producer,
        "seconds": step.seconds,
        "done": step.is_end,
    }
    return values if step.accuracy is None else {**values, "accuracy": step.accuracy}


def as_step(result: Mapping[str, Any]) -> Step:
    """The step that a result is about."""
    names = ("event", "phase", "progress", "words", "producer", "seconds")
    return Step(accuracy=result.get("accuracy"), **{name: result[name] for name in names})
