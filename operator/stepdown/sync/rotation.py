"""When the operator's own CA follows upon another: pure, over times. `sync.tls` does what this says.

A CA is first made (`made_s`), then told to every proxy in the bundle of its fleet's ConfigMap (`told_s`: the operator has
applied all of them), and only then signs: a proxy that did not know it would not speak to the operator. The one before stays
in the bundle until it ends.

    made ──▶ told ── SETTLED_S later ──▶ signs ── until RENEW_S before its end ──▶ followed ──▶ ended

Where the new one could not be told to everyone, it signs all the same LAST_S before the end of the old one, which then is of
no use to anybody.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

DAY_S = 86_400.0
LIFE_S = 2 * 365 * DAY_S
RENEW_S = 90 * DAY_S
"""A CA is followed by another so long before it ends."""
SETTLED_S = DAY_S
"""From the ConfigMaps to the last pod: a mounted one takes minutes; a node that was cut off, longer."""
LAST_S = 7 * DAY_S

SERVER_LIFE_S = 30 * DAY_S
SERVER_RENEW_S = 20 * DAY_S
"""A server's certificate is made anew so long before it ends."""


@dataclass(frozen=True, slots=True)
class Term:
    """One CA's times, Unix seconds. `id` tells it from others."""

    id: str
    made_s: float
    ends_s: float
    told_s: float | None = None

    def settled(self, now_s: float) -> bool:
        return self.told_s is not None and now_s - self.told_s >= SETTLED_S


def signer(terms: Sequence[Term], now_s: float) -> Term | None:
    """Who signs now: the newest that every proxy knows. None: nobody can, a new CA is needed at once."""
    alive = in_bundle(terms, now_s)
    if not alive:
        return None
    for newer in reversed(alive[1:]):
        if newer.settled(now_s):
            return newer
    oldest = alive[0]
    if len(alive) > 1 and oldest.ends_s - now_s <= LAST_S:
        return alive[1]
    return oldest


def needs_another(terms: Sequence[Term], now_s: float) -> bool:
    """Whether a new CA has to be made: there is none, or the newest nears its end."""
    return not terms or terms[-1].ends_s - now_s <= RENEW_S


def in_bundle(terms: Sequence[Term], now_s: float) -> list[Term]:
    """Those that proxies have to know, the oldest first."""
    return [each for each in terms if each.ends_s > now_s]


def told(terms: Sequence[Term], known: frozenset[str], now_s: float) -> list[Term]:
    """Every proxy's ConfigMap has those of `known`. The first time counts; a clock that was put back does not add to it."""
    return [
        replace(each, told_s=now_s) if each.id in known and (each.told_s is None or each.told_s > now_s) else each
        for each in terms
    ]


def server_is_due(server_ends_s: float, now_s: float) -> bool:
    """Whether the server's certificate has to be made anew."""
    return server_ends_s - now_s <= SERVER_RENEW_S
