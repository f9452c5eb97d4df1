"""What `kubectl get` prints of objects: the table that the API server makes of a kind's columns, as kubectl sets it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from stepdown.model.base import GROUP, Resource

_CONDITION = re.compile(r'\[\?\(@\.type=="(\w+)"\)\]')
_GAP = 3
"""Spaces between two columns."""


def steps(path: str) -> list[str]:
    """`.a.b[?(@.x=="y")].c` → `a`, `b[?(@.x=="y")]`, `c`."""
    return re.split(r"\.(?![^\[]*\])", path.strip("."))


def cell(path: str, document: Mapping[str, Any]) -> str:
    """The value of a column's simple JSONPath; empty: there is none."""
    found: Any = document
    for step in steps(path):
        name, _, _ = step.partition("[")
        found = found.get(name) if isinstance(found, Mapping) else None
        if found is not None and (wanted := _CONDITION.search(step)):
            found = next((each for each in found if each["type"] == wanted[1]), None)
    return "" if found is None else str(found)


def table(kind: type[Resource], objects: Sequence[Mapping[str, Any]], *, prefix: bool = False) -> list[str]:
    """The lines of `kubectl get KIND`, or with `prefix` those that `kubectl get stepdown` has of the kind."""
    columns = [column for column in kind.columns if not column.wide]
    rows = [["NAME", *(column.name.upper() for column in columns)]]
    for each in objects:
        name = each["metadata"]["name"]
        full = f"{kind.kind_name.lower()}.{GROUP}/{name}" if prefix else name
        rows.append([full, *("103m" if column.type == "date" else cell(column.path, each) for column in columns)])
    widths = [max(len(row[index]) for row in rows) + _GAP for index in range(len(columns) + 1)]
    return ["".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip() for row in rows]
