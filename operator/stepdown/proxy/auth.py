"""Who may call a route: the SHA-256 of a client's key against the hashes that the route names. `exchange` asks.

A digest is looked up in a set. That is not constant-time, and need not be: what an attacker could learn from the time of the
lookup is a prefix of the *digest* of a key of their own choosing, which is of no use without a preimage, and keys have 256
bits (`stepdown key new`). Keys that people invent are why only hashes of made keys belong in a route.
"""

import hashlib

from stepdown.proxy.errors import ApiError, NotFound, Unauthenticated
from stepdown.proxy.table import RouteEntry, Table

_SCHEME = b"bearer "


def key_digest(authorization: bytes) -> bytes | None:
    """The SHA-256 of the key in `Authorization: Bearer KEY`; None where there is none."""
    if authorization[:7].lower() != _SCHEME:
        return None
    key = authorization[7:].strip()
    return hashlib.sha256(key).digest() if key else None


class Callers:
    """Whom a table's routes know. One for each table."""

    __slots__ = ("_known", "table")

    def __init__(self, table: Table) -> None:
        self.table = table
        self._known: frozenset[bytes] | None = None

    @property
    def known(self) -> frozenset[bytes]:
        """The hashes of all routes; made when first asked for, since a call that is allowed never asks."""
        if self._known is None:
            self._known = frozenset(each for route in self.table.routes for each in route.key_hashes or ())
        return self._known

    def visible(self, digest: bytes | None) -> list[RouteEntry]:
        """The routes that this caller may call."""
        return [route for route in self.table.routes if route.key_hashes is None or digest in route.key_hashes]

    def stranger(self, digest: bytes | None, authorization: bytes, model: str, unknown: str) -> ApiError:
        """What somebody is told who asked for a route that does not exist (`unknown` says so) or is not theirs.

        The two must sound the same, or a stranger could find out the names of other teams' routes: a caller whose key opens
        some route is told 404 for both, one without such a key 401 for both. Where no route of the fleet asks for a key there
        is nothing to hide.
        """
        if not self.known:
            return NotFound(unknown, param="model", code="model_not_found")
        if digest in self.known:
            return NotFound(
                f"there is no route {model!r} that this key may call; GET /v1/models lists those that it may",
                param="model",
                code="model_not_found",
            )
        said = "no API key was sent" if not authorization else "the API key that was sent is not one that any route names"
        return Unauthenticated(
            f"there is no route {model!r} that may be called so: {said}. Send `Authorization: Bearer KEY` with a key whose"
            f" SHA-256 stands in the route's spec.callers"
        )
