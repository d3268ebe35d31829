# SPDX-License-Identifier: Apache-2.0
"""Reads a configuration file: which key has which values, and in which line.

What they mean is the options' to say. Of YAML it takes the plain part: one mapping of words to
values and lists of values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# It takes 10 ms: only who gives a file imports this module.
import yaml

from otelbpf.errors import UsageError

#: In bytes. An agent's is a hundredth of it; a reader of YAML takes long over much of it.
SIZE_MOST = 64 << 10
_SHAPE = "keys and values, as in `port: 8080`, one a line"


@dataclass(frozen=True)
class Value:
    """One value.

    Attributes:
        text: as it is written, without its quotes: what an option would be given.
        place: the file and the line, for who complains.
        truth: what it says if it is one of YAML's words for true and false, without quotes; else
            None.
        is_null: nothing is there, or one of YAML's words for nothing, without quotes.
    """

    text: str
    place: str
    truth: bool | None = None
    is_null: bool = False


@dataclass(frozen=True)
class Entry:
    """A key and what it has.

    Attributes:
        place: the file and the line of the key.
        values: of the list, or the only one.
        is_list: it is written as a list, of however many.
    """

    key: str
    place: str
    values: tuple[Value, ...]
    is_list: bool


class _ShapeError(yaml.MarkedYAMLError):
    """It is YAML, but more than a configuration has."""


class _Loader(yaml.SafeLoader):
    """Refuses all that is deeper than a list of values, or shared, where it meets it."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if odd := _odd(event, parent, index):
            raise _ShapeError(problem=odd, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def _odd(event: Any, parent: Any, index: Any) -> str:
    """What is wrong with what comes next, as the value of `index` in `parent`; empty: nothing."""
    if isinstance(event, yaml.AliasEvent):
        return _extra("an alias", f"*{event.anchor}", "*")
    if event.anchor is not None:
        return _extra("an anchor", f"&{event.anchor}", "&")
    if event.tag is not None:
        return _extra("a tag", event.tag, "!")
    is_value = isinstance(event, yaml.ScalarEvent)
    if parent is None:
        # An empty document has an empty value.
        fits = isinstance(event, yaml.MappingStartEvent) or (is_value and not event.value)
        return "" if fits else f"a configuration is {_SHAPE}"
    if isinstance(parent, yaml.MappingNode) and index is None:
        return "" if is_value else "a key is one word, no list and no mapping"
    if is_value or (isinstance(parent, yaml.MappingNode) and _begins_list(event)):
        return ""
    what = "a list" if _begins_list(event) else "keys of its own"
    whose = "a list" if isinstance(parent, yaml.SequenceNode) else repr(index.value)
    return (
        f"{whose} has {what} in it: a key has one value, or a list of values; write what has "
        "brackets, braces, or a colon and a blank in quotes"
    )


def _begins_list(event: Any) -> bool:
    return isinstance(event, yaml.SequenceStartEvent)


def _extra(what: str, which: str, mark: str) -> str:
    return (
        f"{what} ({which}) has no meaning in a configuration: write the value itself, in quotes if "
        f"it begins with {mark}"
    )


def read(path: str) -> list[Entry]:
    """What the file says, in its order.

    Raises:
        UsageError: it cannot be read, or is no YAML of that kind, or has a key twice.
    """
    text = _text(path)
    root = _root(path, text)
    if root is None or not root.value:
        raise UsageError(f"{path} has no key: a configuration is {_SHAPE}")
    lines: dict[str, int] = {}
    entries = []
    for key, value in root.value:
        place = _place(path, key)
        if key.value in lines:
            raise UsageError(
                f"{place}: the key {key.value!r} is in line {lines[key.value]} already: give it "
                "once, with a list if it has several values"
            )
        lines[key.value] = key.start_mark.line + 1
        is_list = isinstance(value, yaml.SequenceNode)
        nodes = value.value if is_list else [value]
        values = tuple(_value(path, key.value, node) for node in nodes)
        entries.append(Entry(key.value, place, values, is_list))
    return entries


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            # More than that it may go on for ever.
            raw = file.read(SIZE_MOST + 1)
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path!r}: {error.strerror}") from error
    if len(raw) > SIZE_MOST:
        raise UsageError(
            f"{path} is larger than {SIZE_MOST >> 10} KiB: it is no configuration of otelbpf's"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: this is not UTF-8: save it as that") from error


def _root(path: str, text: str) -> Any:
    """The YAML's topmost mapping; None if there is nothing."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"U+{ord(text[error.position]):04X} is not allowed in it"
        raise UsageError(f"{path}:{line}: this is no YAML: {what}") from error
    try:
        return loader.get_single_node()
    except _ShapeError as error:
        raise UsageError(f"{path}:{_line(error, text)}: {error.problem}") from error
    except yaml.MarkedYAMLError as error:
        why = ", ".join(filter(None, (error.context, error.problem)))
        if isinstance(error, yaml.parser.ParserError):
            why += "; a value with brackets, braces or other marks may need quotes"
        raise UsageError(f"{path}:{_line(error, text)}: this is no YAML: {why}") from error
    except (ValueError, OverflowError) as error:
        # PyYAML's own, of an escape beyond Unicode and of a number beyond Python's patience.
        raise UsageError(f"{path}:{loader.line + 1}: this is no YAML: {error}") from error


def _line(error: yaml.MarkedYAMLError, text: str) -> int:
    """Where it is; of what is not ended, where it begins."""
    mark, context = error.problem_mark, error.context_mark
    if context and (mark is None or mark.index >= len(text.rstrip())):
        mark = context
    return mark.line + 1 if mark else 1


def _place(path: str, node: Any) -> str:
    return f"{path}:{node.start_mark.line + 1}"


def _value(path: str, key: str, node: Any) -> Value:
    place = _place(path, node)
    try:
        node.value.encode()
        fits = "\0" not in node.value
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise UsageError(f"{place}: {key}: {node.value!r} has a character that no option can have")
    truth = None
    if node.tag == "tag:yaml.org,2002:bool":
        truth = yaml.SafeLoader.bool_values[node.value.lower()]
    return Value(node.value, place, truth, node.tag == "tag:yaml.org,2002:null")
