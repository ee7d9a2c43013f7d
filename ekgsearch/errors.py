"""Errors that a person can act on: what was expected, what was found, where, what to do."""


class EkgError(Exception):
    """Root of every error this package raises on purpose; the command line prints it without a traceback.

    Several arguments are several mistakes, each of which is shown in a line of its own.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class JobError(EkgError):
    """The job file asks for something that is not allowed or contradicts itself."""


class DataError(EkgError):
    """Images or labels are missing, damaged or not what the job says."""


class MissingDataError(DataError):
    """There are no images where the job says, and none can be fetched; those that are there may still be damaged."""


class NetworkError(EkgError):
    """A network, its weights or its traced graph cannot be used as asked."""


class BudgetError(EkgError):
    """The requested cost cannot be reached by cutting the channel groups of this network."""


class StorageError(EkgError):
    """A file or object could not be written, read or verified."""


class ResumeError(EkgError):
    """A run directory belongs to another job, machine or version than the one that wants to continue it."""


class NumericsError(EkgError):
    """A loss or reward is not a finite number."""


class Stopped(EkgError):  # noqa: N818 (a clean stop is no error)
    """A listener of the run has asked for a clean stop; what is committed is kept."""


class WorkerError(EkgError):
    """A worker died or hung more often than the job allows."""


OUT_OF_MEMORY = (
    "out of memory; what is in the journal is kept and the same command continues, on a machine or device with more "
    "memory, with fewer workers on this one, or with a smaller finetune.batch_size / more finetune.accumulate"
)
"""What to do when memory runs out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, of torch on a CPU or GPU, or of the loader of libraries says that memory ran out."""
    words = ("not enough memory", "failed to map segment", "Cannot allocate memory")
    is_named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    return is_named or any(part in str(error) for part in words)
