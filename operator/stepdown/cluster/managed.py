"""What an object's `metadata.managedFields` tell: whether what we applied is as we left it, and who else is at work there.

`children` asks. The API server keeps for each manager the set of fields that are its own, and takes a field out of our set as
soon as somebody else changes or removes it. So one comparison of our set tells every drift, without reading a single value, and
what others own (an autoscaler's replicas, an injected annotation, the status) never looks like one.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec


def trace(metadata: Mapping[str, Any], manager: str) -> str:
    """Our own entry as a short text: equal as long as nobody touched what we applied. Empty: nothing is ours (any more)."""
    ours = [each for each in _entries(metadata) if each.get("manager") == manager and each.get("operation") == "Apply"]
    # The time tells an apply in our name that set other values, which leaves the set of fields as it was.
    told = [[each.get("apiVersion"), each.get("time"), each.get("fieldsV1")] for each in ours if not each.get("subresource")]
    if not told:
        return ""
    return hashlib.blake2b(msgspec.json.encode(told, order="sorted"), digest_size=16).hexdigest()


def owned_elsewhere(metadata: Mapping[str, Any], manager: str, *path: str) -> bool:
    """Whether anybody but us has set the field, such as `spec`, `replicas`; through a subresource (`scale`) as well."""
    return any(each.get("manager") != manager and _has(each.get("fieldsV1"), path) for each in _entries(metadata))


def last_other(metadata: Mapping[str, Any], manager: str) -> str:
    """Who last wrote the object but for us and for status; empty if nobody did. For log lines."""
    others = [each for each in _entries(metadata) if each.get("manager") != manager and each.get("subresource") != "status"]
    latest = max(others, key=lambda each: str(each.get("time", "")), default=None)
    return str(latest.get("manager", "")) if latest is not None else ""


def _entries(metadata: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for each in metadata.get("managedFields") or ():
        if isinstance(each, dict):
            yield each


def _has(fields: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if not isinstance(fields, dict) or f"f:{part}" not in fields:
            return False
        fields = fields[f"f:{part}"]
    return True
