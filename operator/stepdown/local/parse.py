"""Text to values, as kubectl would read it, and stricter where a mistake would hide. `documents` calls this for every file.

PyYAML's loaders keep the last of two equal keys, turn dates into objects, and crash on deep nesting. So only libyaml's events
are used here, and values are built from them without recursion: duplicate keys, tags, aliases that multiply and nesting beyond
any object's are refused with their line. Scalars resolve as in kubectl (YAML 1.1), save that a date stays text, since an object
is JSON in the end. That reads 10,000 routes in 0.7 s (CSafeLoader: 1.8 s; Rust parsers: 0.75 s, without lines).
"""

import json
import re
from dataclasses import dataclass
from sys import intern
from typing import Any

import yaml
from yaml._yaml import CParser
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

MAX_DEPTH = 64
"""Nested lists and maps in one document; our deepest field is at 8."""
MAX_NODES = 200_000
"""Values in one document, those that aliases repeat included: a catalog of 5,000 models."""

Path = tuple[str | int, ...]
"""Where a value is in its document: `("spec", "models", "fallbacks", 0)`."""


class ParseError(Exception):
    """A file that cannot be read as documents. None of it is used."""

    def __init__(self, message: str, document: int, line: int) -> None:
        super().__init__(message)
        self.message = message
        self.document = document
        """Counted from 1."""
        self.line = line


@dataclass(frozen=True, slots=True)
class Parsed:
    """One document that is not empty."""

    number: int
    """Counted from 1, empty documents included, as an editor's reader would."""
    line: int
    value: Any


def parse_yaml(text: str) -> list[Parsed]:
    """Every document of a file. Raises ParseError for the first that is wrong."""
    try:
        return _Builder(text).documents()
    except yaml.YAMLError as error:
        raise _syntax_error(error, text) from None


def parse_json(text: str) -> list[Parsed]:
    """One document in JSON. Raises ParseError."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ParseError(f"the key {key!r} is there twice in one object; keep one of them", 1, _line_of_key(text, key))
            found[key] = value
        return found

    try:
        return [Parsed(1, 1, json.loads(text, object_pairs_hook=no_duplicates, parse_constant=_no_constant))]
    except json.JSONDecodeError as error:
        raise ParseError(f"not JSON: {error.msg}; fix it there, or name the file .yaml", 1, error.lineno) from None
    except RecursionError:
        raise ParseError(f"nested deeper than {MAX_DEPTH} levels; no object of ours is", 1, 1) from None
    except ValueError as error:
        raise ParseError(str(error), 1, 1) from None


def line_of(text: str, document: int, path: Path) -> int:
    """The line of the value at `path`, or of the nearest thing above it that is there. Only called for problems."""
    best, best_depth, number = 1, -1, 0
    parser: Any = CParser(text)
    stack: list[list[Any]] = []  # [is_map, key or index, expecting a key]
    try:
        while (event := parser.get_event()).__class__ is not StreamEndEvent:
            kind = event.__class__
            if kind is DocumentStartEvent:
                number += 1
            if number != document or kind not in _VALUES:
                if number == document and kind in (MappingEndEvent, SequenceEndEvent):
                    stack.pop()
                    _advance(stack)
                continue
            line = event.start_mark.line + 1
            if stack and stack[-1][0] and stack[-1][2]:
                stack[-1][1:] = [getattr(event, "value", None), False]
                if _match(stack, path) > best_depth:
                    best, best_depth = line, _match(stack, path)
                continue
            if _match(stack, path) > best_depth:
                best, best_depth = line, _match(stack, path)
            if kind in (MappingStartEvent, SequenceStartEvent):
                stack.append([kind is MappingStartEvent, 0, True])
            else:
                _advance(stack)
    except yaml.YAMLError:
        pass
    return best


class _Builder:
    """Values from events, with an explicit stack: what is open, and for each the key or list that waits for a value."""

    def __init__(self, text: str) -> None:
        self._parser: Any = CParser(text)
        self._number = 0
        self._nodes = 0
        self._anchors: dict[str, tuple[Any, int]] = {}

    def documents(self) -> list[Parsed]:
        found: list[Parsed] = []
        get = self._parser.get_event
        while (event := get()).__class__ is not StreamEndEvent:
            if event.__class__ is DocumentStartEvent:
                self._number += 1
                self._nodes = 0
                self._anchors.clear()
                first = get()
                value = self._document(first)
                if value is not None:
                    found.append(Parsed(self._number, first.start_mark.line + 1, value))
        return found

    def _document(self, event: Any) -> Any:
        """The value whose first event this is. One loop and no calls for the common events: this is the hot path of a start."""
        get = self._parser.get_event
        holder: list[Any] = []
        current: Any = holder
        key: Any = None
        stack: list[tuple[Any, Any, str | None, int]] = []
        while True:
            kind = event.__class__
            self._nodes += 1
            if kind is ScalarEvent:
                if current.__class__ is dict and key is None:
                    key = self._key(event, current)
                    event = get()
                    continue
                value = self._scalar(event)
            elif kind is MappingStartEvent or kind is SequenceStartEvent:
                if current.__class__ is dict and key is None:
                    raise self._error("a list or map is used as a key; keys are text", event)
                value = {} if kind is MappingStartEvent else []
                self._check_container(event, len(stack))
                stack.append((current, key, event.anchor, self._nodes))
                current, key = value, None
                event = get()
                continue
            elif kind is MappingEndEvent or kind is SequenceEndEvent:
                value = current
                current, key, anchor, since = stack.pop()
                if anchor is not None:
                    self._anchors[anchor] = (value, self._nodes - since)
            elif kind is AliasEvent:
                value = self._alias(event)
            if current.__class__ is dict:
                current[key] = value
                key = None
            else:
                current.append(value)
            if not stack:
                return holder[0]
            event = get()

    def _key(self, event: Any, into: dict[str, Any]) -> str:
        key: str = intern(event.value)  # 10,000 routes share their field names
        if key in into:
            raise self._error(f"the key {key!r} is there twice in one map; keep one of them", event)
        if key == "<<" and not event.style:
            raise self._error("merge keys (<<) are not read here; write the fields out", event)
        return key

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if event.tag is not None:
            if event.tag not in ("!", "tag:yaml.org,2002:str"):
                raise self._error(f"the tag {event.tag!r} is not known; leave it out (objects are plain JSON values)", event)
            value: Any = text
        elif event.style or (text and text[0] not in _SPECIAL):
            value = text
        else:
            value = self._plain(text, event)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, 1)
        return value

    def _plain(self, text: str, event: Any) -> Any:
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > 100:
                raise self._error(f"a number of {len(text)} digits is not one that anything here takes", event)
            sign, digits = ("-", text[1:]) if text[0] == "-" else ("", text.removeprefix("+"))
            return int(sign + digits, 8 if len(digits) > 1 and digits[0] == "0" and digits[1] not in "xX" else 0)
        if _FLOAT.fullmatch(text):
            return float(text)
        return text

    def _check_container(self, event: Any, depth: int) -> None:
        if event.tag is not None and event.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise self._error(f"the tag {event.tag!r} is not known; leave it out (objects are plain JSON values)", event)
        if depth >= MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH} levels; no object of ours is", event)
        self._check_size(event)

    def _alias(self, event: Any) -> Any:
        if event.anchor not in self._anchors:
            raise self._error(f"the alias *{event.anchor} has no anchor &{event.anchor} that ended before it", event)
        value, size = self._anchors[event.anchor]
        self._nodes += size
        self._check_size(event)
        return value

    def _check_size(self, event: Any) -> None:
        if self._nodes > MAX_NODES:
            raise self._error(f"more than {MAX_NODES} values in one document, aliases counted in full; split it", event)

    def _error(self, message: str, event: Any) -> ParseError:
        return ParseError(message, self._number, event.start_mark.line + 1)


_VALUES = (ScalarEvent, MappingStartEvent, SequenceStartEvent, AliasEvent)
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
_SPECIAL = frozenset("~nNtTfFyYoO0123456789+-.")
"""First characters of every plain scalar that is not text."""
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*|0[0-7]+|0x[0-9a-fA-F]+)", re.ASCII)
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", re.ASCII)


def _advance(stack: list[list[Any]]) -> None:
    """A value has ended: its map waits for the next key, its list for the next item."""
    if stack:
        if stack[-1][0]:
            stack[-1][2] = True
        else:
            stack[-1][1] += 1


def _match(stack: list[list[Any]], path: Path) -> int:
    """How much of `path` the open keys and indices are, or -1 where they lead elsewhere."""
    here = [frame[1] for frame in stack]
    return len(here) if len(here) <= len(path) and here == list(path[: len(here)]) else -1


def _syntax_error(error: yaml.YAMLError, text: str) -> ParseError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:  # a ReaderError: a character that YAML does not allow, by its position in the text
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1
        return ParseError("a control character, which YAML does not allow; remove it", _document_at(text, line), line)
    line = mark.line + 1
    what = getattr(error, "problem", None) or "it cannot be read"
    return ParseError(f"not YAML: {what}; look at this line and the one before", _document_at(text, line), line)


def _document_at(text: str, line: int) -> int:
    """The number of the document that a line is in, for text that no parser gets through."""
    starts = [at for at, content in enumerate(text.splitlines()[:line], 1) if re.match(r"---(\s|$)", content)]
    before_first = text[: text.find("\n---") + 1] if not text.startswith("---") else ""
    leading = 1 if not starts or any(row and not row.startswith(("#", "%")) for row in before_first.splitlines()) else 0
    return max(1, len(starts) + leading)


def _line_of_key(text: str, key: str) -> int:
    places = [match.start() for match in re.finditer(re.escape(json.dumps(key)) + r"\s*:", text)]
    return text.count("\n", 0, places[1]) + 1 if len(places) > 1 else 1


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")
