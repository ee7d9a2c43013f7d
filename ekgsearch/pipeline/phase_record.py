"""Records of the phase store: what they hold, the keys they are under, and how damage shows."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ekgsearch.errors import StorageError
from ekgsearch.records import content_hash
from ekgsearch.storage.sealed import sealed, unsealed

_FILES = "files"
_REMEDY = "remove this object, and the next run that needs it computes it again"
_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Content of a file.

    Attributes:
        sha256: SHA-256 (hex) of its bytes.
        num_bytes: how many they are.
    """

    sha256: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRecord:
    """What a run states about a phase that it has computed.

    Attributes:
        producer: name of the run.
        fields: what the journal line of the phase says; a JSON dictionary.
        inputs: what the key is the hash of, so that a person can read why two keys differ; a JSON dictionary.
    """

    producer: str
    fields: Mapping[str, Any]
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPhase:
    """The result of a phase as the store has it.

    Attributes:
        key: hash of what it depends on.
        producer: name of the run that computed it.
        fields: what the journal line of the phase says.
        inputs: what the key is the hash of.
        files: content by name in the run directory.
    """

    key: str
    producer: str
    fields: dict[str, Any]
    inputs: dict[str, Any]
    files: dict[str, StoredFile]


def phase_prefix(key: str) -> str:
    """Begin of the keys of everything that belongs to one phase.

    Args:
        key: hash of what the phase depends on.

    Raises:
        StorageError: the key is none.
    """
    if not _KEY.fullmatch(key) or key == _FILES:
        raise StorageError(f"key {key!r} cannot be that of a phase; expected a hash such as {content_hash(None)}")
    return f"phases/{key}/"


def record_key(key: str) -> str:
    """Key of the object that holds the record of a phase."""
    return f"{phase_prefix(key)}result.json"


def decision_key(key: str, number: int) -> str:
    """Key of the object that holds a decision of a search; number 0 is the unpruned network."""
    if number < 0:
        raise StorageError(f"a search has no decision {number}; expected a number from 0 (search {key})")
    return f"{phase_prefix(key)}decisions/{number:06}.json"


def file_key(file: StoredFile) -> str:
    """Key of the object that holds a file's content."""
    return f"phases/{_FILES}/{file.sha256}"


def write_record(key: str, record: PhaseRecord, files: Mapping[str, StoredFile]) -> bytes:
    """Serialise the record of a phase, for `parse_record`.

    Args:
        key: hash of what the phase depends on.
        record: what its run states.
        files: content by name in the run directory.

    Raises:
        StorageError: a value is no JSON.
    """
    value = {
        "key": key,
        "producer": record.producer,
        "fields": dict(record.fields),
        "inputs": dict(record.inputs),
        "files": {name: asdict(file) for name, file in files.items()},
    }
    return _sealed(record_key(key), value)


def parse_record(key: str, data: bytes, place: str) -> StoredPhase:
    """Read the record of a phase; what is not exactly what `write_record` gives is damage.

    Args:
        key: hash of what the phase depends on.
        data: content of the object.
        place: address of the store, for the message.

    Raises:
        StorageError: the record is damaged, or another phase's.
    """
    name = record_key(key)
    value = _unsealed(name, data, place)
    match value:
        case {
            "key": str(its_key),
            "producer": str(producer),
            "fields": dict(fields),
            "inputs": dict(inputs),
            "files": dict(files),
        } if its_key == key and all(_is_content(content) for content in files.values()):
            contents = {file: StoredFile(**content) for file, content in files.items()}
            return StoredPhase(key=key, producer=producer, fields=fields, inputs=inputs, files=contents)
    raise _damage(name, place, f"expected the record of the phase {key}, found {_shown(value)}")


def write_decision(key: str, number: int, record: Mapping[str, Any], producer: str) -> bytes:
    """Serialise a decision of a search, for `parse_decision`.

    Args:
        key: hash of what the search depends on.
        number: of the decision, from 0.
        record: the decision, a JSON dictionary.
        producer: name of the run that made it.

    Raises:
        StorageError: a value is no JSON.
    """
    value = {"key": key, "number": number, "producer": producer, "record": dict(record)}
    return _sealed(decision_key(key, number), value)


def parse_decision(key: str, number: int, data: bytes, place: str) -> tuple[dict[str, Any], str]:
    """Read a decision and the name of the run that made it.

    Args:
        key: hash of what the search depends on.
        number: of the decision, from 0.
        data: content of the object.
        place: address of the store, for the message.

    Raises:
        StorageError: the decision is damaged, or another one.
    """
    name = decision_key(key, number)
    value = _unsealed(name, data, place)
    match value:
        case {"key": str(its_key), "number": int(its_number), "producer": str(producer), "record": dict(record)} if (
            its_key == key and its_number == number
        ):
            return record, producer
    raise _damage(name, place, f"expected decision {number} of the search {key}, found {_shown(value)}")


def _unsealed(name: str, data: bytes, place: str) -> Any:
    """Take a value out of what `sealed` gave, and verify it."""
    try:
        return unsealed(data, f"{name!r} in the phase store {place}")
    except StorageError as error:
        raise StorageError(f"{error}; {_REMEDY}") from error


def _damage(name: str, place: str, reason: str) -> StorageError:
    return StorageError(f"{name!r} in the phase store {place} is damaged: {reason}; {_REMEDY}")


def _is_content(value: Any) -> bool:
    match value:
        case {"sha256": str(sha256), "num_bytes": int(), **rest} if not rest:
            return _SHA256.fullmatch(sha256) is not None
    return False


def _shown(value: Any) -> str:
    return f"{value!r:.200}"


def _sealed(name: str, value: Any) -> bytes:
    try:
        return sealed(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{name!r} cannot be written as JSON ({error}); expected text, finite numbers, true, false, null, lists "
            "and dictionaries with text keys"
        ) from error
