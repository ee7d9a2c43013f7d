"""How one seed of a job becomes many, one for each purpose."""

import hashlib

from ekgsearch.records import canonical_json


def sub_seed(seed: int, *names: str | int) -> int:
    """Derive a seed for one purpose, independent of the order in which purposes are asked for.

    Args:
        seed: seed of the job, any integer.
        *names: what the seed is for, such as ``"views", 3``.

    Returns:
        A number in [0, 2**63), the same on every machine and in every version of Python.
    """
    digest = hashlib.sha256(canonical_json([seed, *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
