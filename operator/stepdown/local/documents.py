"""Reads folders of objects: `kubectl apply -R -f DIR` without a cluster. `world` calls this, and `run` again at every change.

A file is read whole or not at all: half a file is never a policy. Parsed files are kept by what they contain, so a reload
costs a stat of each file and the parsing of those that changed. Every problem names the file, the document and the line.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from stepdown.local import parse
from stepdown.local.parse import ParseError, Path

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILE_BYTES = 64 * 1024 * 1024
"""About 100,000 routes in one file; more is a mistake, and reading it would stop everything else."""
_SETTLED_NS = 2_000_000_000
"""A file that was changed less than this before it was read may change again within its clock's grain: read it again."""


@dataclass(frozen=True, slots=True)
class Document:
    """One object as it stands in a file, not yet judged."""

    file: str
    """As the user would name it: the path that was given plus the path below it."""
    number: int
    line: int
    body: dict[str, Any]
    inside: Path = ()
    """Where the object is in its document, for the items of a List."""

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a person must mend, said so that they can."""

    file: str
    document: int
    """Counted from 1; 0: the file as a whole."""
    line: int
    message: str
    note: bool = False
    """True: nothing is wrong, but something was left out."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" + (f" (document {self.document})" if self.document > 1 else "")
        return f"{where}: {self.message}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A folder at one moment."""

    documents: tuple[Document, ...]
    problems: tuple[Problem, ...]
    unreadable: frozenset[str]
    """Files that cannot be read now. `documents` has what they held when they last could be."""


@dataclass(slots=True)
class _File:
    signature: tuple[int, int, int]
    read_at_ns: int
    digest: bytes
    documents: tuple[Document, ...]
    problems: tuple[Problem, ...]
    bad: bool


class FolderMissing(Exception):
    """`-f` names nothing that is there."""


class Folder:
    """What `-f` names: files and folders, read again and again."""

    def __init__(self, roots: Sequence[str]) -> None:
        self.roots = tuple(roots)
        self._files: dict[str, _File] = {}

    def load(self, now_ns: int) -> Loaded:
        """Everything that is there now. Raises FolderMissing where a root is not."""
        found: dict[str, _File] = {}
        for name, path in self._paths():
            entry = self._file(name, path, now_ns)
            if entry is not None:
                found[name] = entry
        self._files = found
        return Loaded(
            documents=tuple(document for entry in found.values() for document in entry.documents),
            problems=tuple(problem for entry in found.values() for problem in entry.problems),
            unreadable=frozenset(name for name, entry in found.items() if entry.bad),
        )

    def _paths(self) -> Iterator[tuple[str, FilePath]]:
        for root in self.roots:
            path = FilePath(root)
            if path.is_file():
                yield root, path
            elif path.is_dir():
                yield from ((str(name), name) for name in _walk(path, set()))
            else:
                raise FolderMissing(f"-f {root}: there is no such file or folder; name the folder that holds your YAML")

    def _file(self, name: str, path: FilePath, now_ns: int) -> _File | None:
        """One file, from the cache where it has not changed. None: it has gone since the folder was listed."""
        known = self._files.get(name)
        try:
            stat = path.stat()
            signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if known and known.signature == signature and known.read_at_ns - stat.st_mtime_ns > _SETTLED_NS:
                return known
            if stat.st_size > MAX_FILE_BYTES:
                problem = f"{stat.st_size} bytes; a file may have {MAX_FILE_BYTES}. Split it"
                return _kept(_unreadable(name, signature, now_ns, b"", problem), known)
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return _kept(_unreadable(name, (0, 0, 0), 0, b"", f"cannot be read: {error.strerror}"), known)
        digest = hashlib.sha256(content).digest()
        if known and known.digest == digest:
            known.signature, known.read_at_ns = signature, now_ns
            return known
        return _kept(_parse_file(name, signature, now_ns, digest, content), known)


def line_of(document: Document, path: Path) -> int:
    """The line of a field of a document, as its file is now."""
    if document.file.endswith(".json"):
        return document.line
    try:
        text = FilePath(document.file).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return document.line
    return parse.line_of(text, document.number, document.inside + path)


def _walk(folder: FilePath, seen: set[tuple[int, int]]) -> Iterator[FilePath]:
    """Files below a folder in a stable order. Hidden names are skipped: a mounted ConfigMap keeps its copies in `..data`."""
    stat = folder.stat()
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, seen)
        elif entry.name.lower().endswith(SUFFIXES):
            yield folder / entry.name


def _parse_file(name: str, signature: tuple[int, int, int], now_ns: int, digest: bytes, content: bytes) -> _File:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"byte {error.start} is not UTF-8; save the file as UTF-8"
        return _unreadable(name, signature, now_ns, digest, problem, line=line)
    text = text.removeprefix("\ufeff")
    try:
        parsed = parse.parse_json(text) if name.lower().endswith(".json") else parse.parse_yaml(text)
    except ParseError as error:
        return _unreadable(name, signature, now_ns, digest, error.message, document=error.document, line=error.line)
    documents: list[Document] = []
    problems: list[Problem] = []
    for each in parsed:
        _expand(name, each, each.value, (), documents, problems)
    return _File(signature, now_ns, digest, tuple(documents), tuple(problems), bad=False)


def _kept(entry: _File, known: _File | None) -> _File:
    """A file that went bad still means what it said last; a file that was never good means nothing."""
    if entry.bad and known is not None:
        entry.documents = known.documents
    return entry


def _expand(
    name: str, parsed: parse.Parsed, value: Any, inside: Path, documents: list[Document], problems: list[Problem]
) -> None:
    """A document, or each item of a `kind: List`."""
    place = f"{'.'.join(map(str, inside))}: " if inside else ""
    if not isinstance(value, dict):
        message = f"{place}this is {_kind_of(value)}, not an object; an object has apiVersion, kind, metadata and spec"
        problems.append(Problem(name, parsed.number, parsed.line, message))
    elif value.get("kind") == "List" and isinstance(value.get("items"), list) and not inside:
        for index, item in enumerate(value["items"]):
            _expand(name, parsed, item, ("items", index), documents, problems)
    else:
        documents.append(Document(name, parsed.number, parsed.line, value, inside))


def _unreadable(
    name: str, signature: tuple[int, int, int], now_ns: int, digest: bytes, message: str, *, document: int = 0, line: int = 1
) -> _File:
    return _File(signature, now_ns, digest, (), (Problem(name, document, line, message),), bad=True)


def _kind_of(value: Any) -> str:
    return {list: "a list", str: "text", bool: "a yes or no", int: "a number", float: "a number"}.get(type(value), "a value")
