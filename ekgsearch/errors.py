"""Errors that a person can act on: what was expected, what was found, where, what to do."""


class EkgError(Exception):
    """Root of every error this package raises on purpose; the command line prints it without a traceback."""


class JobError(EkgError):
    """The job file asks for something that is not allowed or contradicts itself."""


class DataError(EkgError):
    """Images or labels are missing, damaged or not what the job says."""


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


class WorkerError(EkgError):
    """A worker died or hung more often than the job allows."""
