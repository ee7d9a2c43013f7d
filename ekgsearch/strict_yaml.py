"""YAML as jobs are written in: what is written is what is meant, and the rest is refused with its lines.

The scalars are those of YAML 1.2 with decimal numbers only: `true`, `false`, `null`, integers and floats, of which
`5e-4` is one. Everything else without quotes is text, such as `yes`, `010`, `0x1F`, `1_000`, `1:30` and `2026-01-31`,
which YAML 1.1 takes for a boolean, for numbers and for a date. Refused are a key given twice, keys that are not text,
merge keys, tags, several documents, and what is too large or too deeply nested to be settings.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

MOST_BYTES = 1 << 16
"""Longest text that is read; the jobs of this project have 1 to 5 kB."""

MOST_LEVELS = 16
"""Deepest nesting, that of aliases written out included."""

MOST_NODES = 10_000
"""Most keys and values, those of aliases counted as often as they are used."""

_LONGEST_NUMBER = 64

_MAP, _SEQ, _NULL, _BOOL, _INT, _FLOAT = (
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "null", "bool", "int", "float")
)
_WHOLE = r"(?:0|[1-9][0-9]*)"
_SCALARS = (
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, rf"[-+]?{_WHOLE}", list("-+0123456789")),
    (
        _FLOAT,
        rf"[-+]?(?:{_WHOLE}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
"""Tag, form and first characters of the scalars that are not text."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something that is refused.

    Attributes:
        line: where it stands, from 1; None where no line is to blame.
        text: what was expected and what was found, in one line without values.
    """

    line: int | None
    text: str


class StrictYamlError(Exception):
    """A text is not YAML, or not of the kind that is read here.

    Attributes:
        mistakes: all of them, or the first that keeps the text from being read.
    """

    def __init__(self, *mistakes: Mistake) -> None:
        super().__init__("; ".join(mistake.text for mistake in mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML text as read.

    Attributes:
        value: its mappings as dicts, its sequences as tuples, its scalars; None for an empty text.
    """

    value: Any
    _root: yaml.Node | None

    def line(self, location: Sequence[str | int]) -> int | None:
        """Line of the deepest part of a location (keys and positions) that stands in the text, from 1."""
        line, node = None, self._root
        for part in location:
            if isinstance(node, yaml.MappingNode):
                entry = next(((key, value) for key, value in node.value if key.value == part), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                entry = node.value[part], node.value[part]
            else:
                break
            if entry is None:
                break
            line, node = _line(entry[0]), entry[1]
        return line


def read_yaml(data: bytes | str) -> Document:
    """Read one YAML document.

    Args:
        data: the text, or its bytes in UTF-8.

    Raises:
        StrictYamlError: with every mistake where the text is YAML, else with the first.
    """
    text = data if isinstance(data, str) else _decoded(data)
    if len(text.encode(errors="surrogatepass")) > MOST_BYTES:
        raise StrictYamlError(Mistake(None, f"expected settings of at most {MOST_BYTES:,} bytes, found more"))
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except ReaderError as error:
        found = f"expected printable characters, found U+{error.character:04X}"
        raise StrictYamlError(Mistake(text.count("\n", 0, error.position) + 1, found)) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = " ".join(", ".join(filter(None, (error.context, error.problem))).split())
        raise StrictYamlError(Mistake(mark.line + 1 if mark else None, f"not valid YAML: {words}")) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # e.g. an escape beyond the last character there is
        line = loader.get_mark().line + 1 if loader else None
        raise StrictYamlError(Mistake(line, f"not valid YAML: {' '.join(str(error).split())}")) from error
    if root is None:
        return Document(None, None)
    if mistakes := tuple(_size_mistakes(root)) or tuple(dict.fromkeys(_mistakes(root))):
        raise StrictYamlError(*mistakes)
    return Document(_value(root), root)


def write_yaml(value: Any) -> str:
    """YAML text of plain values that `read_yaml`, and any reader of YAML 1.1, reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's reader up to the tree of nodes; in Python, since the one in C overflows its stack on deep nesting."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._levels = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node after a look at its event; what is refused here is not in the tree any more."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._nodes += 1
        if self._levels >= MOST_LEVELS:
            _refuse(_TOO_DEEP, event.start_mark)
        if self._nodes > MOST_NODES:
            _refuse(_TOO_MANY, event.start_mark)
        if getattr(event, "tag", None) is not None:
            _refuse("expected plain values, found a tag (!...); leave it out", event.start_mark)
        self._levels += 1
        node = super().compose_node(parent, index)
        self._levels -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either version of YAML would take for something else."""


for _tag, _form, _starts in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_form})\Z"), _starts)

_TOO_DEEP = f"expected at most {MOST_LEVELS} levels of nesting, found more"
_TOO_MANY = f"expected at most {MOST_NODES:,} keys and values, aliases written out, found more"


def _refuse(words: str, mark: Any) -> None:
    raise StrictYamlError(Mistake(mark.line + 1, words))


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise StrictYamlError(
            Mistake(line, f"expected text in UTF-8, found the byte 0x{data[error.start]:02X} at offset {error.start}")
        ) from error


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for entry in node.value for part in entry]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _size_mistakes(root: yaml.Node) -> Iterator[Mistake]:
    """Tell what grows out of bounds when aliases are written out; every node is looked at once."""
    sizes: dict[int, tuple[int, int, int]] = {}  # levels, nodes and characters below and with a node
    open_nodes: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int, int]:
        if id(node) in open_nodes:
            _refuse("expected values, found one that holds itself", node.start_mark)
        if id(node) not in sizes:
            open_nodes.add(id(node))
            below = [measure(child) for child in _children(node)]
            open_nodes.remove(id(node))
            own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            levels = 1 + max((size[0] for size in below), default=0)
            if levels > MOST_LEVELS:  # refused here, before the walk itself gets too deep
                _refuse(_TOO_DEEP, node.start_mark)
            sizes[id(node)] = levels, 1 + sum(size[1] for size in below), own + sum(size[2] for size in below)
        return sizes[id(node)]

    _, nodes, characters = measure(root)
    if nodes > MOST_NODES:
        yield Mistake(None, _TOO_MANY)
    elif characters > MOST_BYTES:
        yield Mistake(None, f"expected at most {MOST_BYTES:,} characters, aliases written out, found more")


def _mistakes(node: yaml.Node) -> Iterator[Mistake]:
    """Every key and scalar of a tree that is refused, in the order of the text."""
    if isinstance(node, yaml.MappingNode):
        yield from _key_mistakes(node)
    elif isinstance(node, yaml.ScalarNode):
        yield from _scalar_mistakes(node)
    for child in _children(node):
        yield from _mistakes(child)


def _key_mistakes(node: yaml.MappingNode) -> Iterator[Mistake]:
    first: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag in (_NULL, _BOOL, _INT, _FLOAT):
            yield Mistake(_line(key), "expected the name of a field before the colon, found something else")
        elif key.value == "<<" and key.style is None:
            yield Mistake(_line(key), "expected fields, found a merge key (<<); write the fields out")
        elif key.value in first:
            before = first[key.value]
            yield Mistake(
                _line(key), f"{shown(key.value)} is given twice, first in line {before}; leave one of them out"
            )
        else:
            first[key.value] = _line(key)


def _scalar_mistakes(node: yaml.ScalarNode) -> Iterator[Mistake]:
    if node.tag in (_INT, _FLOAT) and len(node.value) > _LONGEST_NUMBER:
        yield Mistake(_line(node), f"expected numbers of at most {_LONGEST_NUMBER} characters, found {len(node.value)}")
    bad = next((one for one in node.value if unicodedata.category(one) in ("Cc", "Cs") and one not in "\t\n"), None)
    if bad is not None:
        yield Mistake(_line(node), f"expected printable characters, found U+{ord(bad):04X} in a text")


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {key.value: _value(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return tuple(_value(item) for item in node.value)
    text = str(node.value)
    match node.tag:
        case "tag:yaml.org,2002:null":
            return None
        case "tag:yaml.org,2002:bool":
            return text.lower() == "true"
        case "tag:yaml.org,2002:int":
            return int(text)
        case "tag:yaml.org,2002:float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def shown(text: str) -> str:
    """A name as an error shows it: without characters that a terminal would act on, at most 60 of them."""
    clean = text if text.isprintable() else repr(text)[1:-1]
    return clean if len(clean) <= 60 else clean[:57] + "..."
