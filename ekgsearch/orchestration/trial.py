"""One trial of a sweep as Ray Tune runs it: the pipeline in a thread, every event a result."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from ekgsearch.errors import EkgError
from ekgsearch.experiment import Job
from ekgsearch.jobfile import job_of_text
from ekgsearch.orchestration.backend import RayBackend
from ekgsearch.orchestration.launch import run_folder
from ekgsearch.pipeline.run import run_job
from ekgsearch.runtime.listener import Listener
from ekgsearch.storage.files import read_bytes
from ekgsearch.sweep.course import Course, as_result
from ekgsearch.sweep.job import STOPPED_FILE
from ekgsearch.workers.backend import InProcessBackend

log = logging.getLogger(__name__)

JUDGED = "judged"
"""Accuracy in a result by which asha may stop a trial; not after the last epoch, when nothing is saved by that."""

PATIENCE_SECONDS = 60.0
"""Time in which a run ends by itself where it is asked to stop."""


class TrialRunner(tune.Trainable):
    """Runs one job after the other; each call of `step` is the next event of the present one."""

    _course: Course | None = None

    def setup(self, config: dict[str, Any]) -> None:
        """Start a run.

        Args:
            config: `job`, the text of its file.
        """
        self._job = job_of_text(config["job"])
        self._course = Course(partial(_run, self._job))

    def step(self) -> dict[str, Any]:
        """Wait for the next event."""
        assert self._course is not None, "a step comes after the setup"
        step = self._course.next()
        assert step is not None, "without a limit of time a step comes"
        result = as_result(step)
        if step.accuracy is not None and step.progress < self._job.finetune.epochs:
            result[JUDGED] = step.accuracy
        return result

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the present run and start another one in the same process."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """End the present run, cleanly where that is quick; what it has started goes with it."""
        course, self._course = self._course, None
        if course is not None and not course.stop(self._reason(), PATIENCE_SECONDS):
            log.error("%s did not end in %g s", self._job.run_dir, PATIENCE_SECONDS)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the journal of the run is its state."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the run goes on from its journal."""

    def _reason(self) -> str:
        """Why the run is stopped, as the driver has written it."""
        path = self._job.run_dir / STOPPED_FILE
        return read_bytes(path).decode() if path.exists() else "stopped by the sweep"


def _run(job: Job, listener: Listener) -> None:
    """Run a job to its end in this process, with workers of the session where it asks for them."""
    with run_folder(job, console=False) as folder:
        Path(folder / STOPPED_FILE).unlink(missing_ok=True)
        backend = RayBackend(job.cluster, shares_session=True) if job.asks_for_workers else InProcessBackend()
        try:
            run_job(job, backend, listener=listener, with_latencies=False)
        except EkgError as error:
            log.warning("%s", error)
            raise
        except Exception:
            log.exception("the run failed")
            raise
