"""A node with real pods (not there yet)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from devcluster.client import Client
from devcluster.components import Component, Identities
from devcluster.layout import Layout


class Node:
    def __init__(self, layout: Layout, programs: Mapping[str, Path]) -> None:
        raise NotImplementedError

    def prepare(self) -> None: ...
    def component(self, known: Identities) -> Component: ...  # type: ignore[empty-body]
    def furnish(self, client: Client) -> Iterator[None]: ...  # type: ignore[empty-body]
