"""Messages between the driver and its workers, and the size of the largest."""

from collections import Counter

from ray import cloudpickle


class Traffic:
    """Counts the calls to every worker, each with its answer, and the serialised size of all that is sent.

    Attributes:
        largest_bytes: size of the largest object so far.
    """

    def __init__(self) -> None:
        self.largest_bytes = 0
        self._calls: Counter[tuple[int, int]] = Counter()

    def weigh(self, value: object) -> None:
        """Take note of an object that travels."""
        self.largest_bytes = max(self.largest_bytes, len(cloudpickle.dumps(value)))  # type: ignore[no-untyped-call]

    def call(self, worker: int, iteration: int) -> None:
        """Count one call to a worker."""
        self._calls[worker, iteration] += 1

    def calls(self, iteration: int) -> int:
        """Most calls to one worker in an iteration."""
        return max((count for (_, known), count in self._calls.items() if known == iteration), default=0)

    @property
    def most_calls(self) -> int:
        """Most calls to one worker in one iteration."""
        return max(self._calls.values(), default=0)
