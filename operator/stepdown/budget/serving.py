"""Who may serve an account's routes, and whether all of them obey it. Pure; `ledger.views` calls this.

A proxy that is not heard for longer than a lease lives is given up as far as money goes. But on a node that cannot be reached
it runs on, and serves a route that no Hard budget bound when it last heard. So a ceiling waits for it too, for as long as its
pod may run; and that is for Kubernetes to say, as of a StatefulSet's pods: until it is deleted, or is known to have ended.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Pod(NamedTuple):
    """In the namespace of its fleet."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True, order=True)
class Unheard:
    """A proxy that was given up as lost, and whose pod may still run."""

    namespace: str
    pod: str
    uid: str
    since_s: float
    """When it was last heard. Unix seconds."""


class Serving(NamedTuple):
    """A proxy that may serve."""

    obeys: Mapping[int, int]
    """By shard: the newest revision of the bindings that it has acknowledged."""
    unheard: Unheard | None = None
    """None: it is heard."""


class Enforcement(NamedTuple):
    """Whether a ceiling holds."""

    holds: bool
    unheard: tuple[Unheard, ...]
    """Whom it waits for who cannot say so; who else it waits for will, as their requests end."""


def enforcement(needed: Mapping[int, int], serving: Iterable[Serving]) -> Enforcement:
    """`needed`: by shard, the revision that everybody must have acknowledged."""
    missing = [each for each in serving if any(each.obeys.get(shard, 0) < revision for shard, revision in needed.items())]
    return Enforcement(not missing, tuple(sorted(each.unheard for each in missing if each.unheard is not None)))
