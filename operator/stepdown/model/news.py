"""The question that a proxy always has open: is there another config than mine? `proxy.listener` asks it, `sync.news` answers.

It carries no config and changes nothing: it only saves the second that a proxy would have waited before its next sync. So it
may be lost, refused or answered wrongly, and a keeper of another version need not know it.
"""

import msgspec

PATH = "/v1/wait"
HOLD_S = 25.0
"""How long the question may stay open: shorter than whatever stands between the two likes to keep silent connections."""


class Have(msgspec.Struct, frozen=True, kw_only=True):
    """What the proxy has, as in a SyncRequest."""

    fleet_digest: str = ""
    digests: dict[int, str] = {}


class News(msgspec.Struct, frozen=True, kw_only=True):
    changed: bool
    """Something else is published: sync."""
