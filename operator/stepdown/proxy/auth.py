"""Who may call a route: the SHA-256 of a client's key against the hashes that the route names, or, where the key is a
ServiceAccount token, its account against those that the route names. `exchange` asks.

A digest is looked up in a set. That is not constant-time, and need not be: what an attacker could learn from the time of the
lookup is a prefix of the *digest* of a key of their own choosing, which is of no use without a preimage, and keys have 256
bits (`stepdown key new`). Keys that people invent are why only hashes of made keys belong in a route.

A token is verified once and then known by its digest until it ends.
"""

import hashlib
from typing import TYPE_CHECKING, Final

from stepdown.proxy.clock import Clock
from stepdown.proxy.errors import ApiError, NotFound, Unauthenticated
from stepdown.proxy.table import RouteEntry, Table

if TYPE_CHECKING:
    from stepdown.proxy.tokens import Verifier

_SCHEME: Final = b"bearer "
_MAX_TOKENS: Final = 10_000
_REFUSED_S: Final = 5.0
"""How long a token that is not good is remembered: a client in a loop costs one verification, and no memory."""


def key_digest(authorization: bytes) -> bytes | None:
    """The SHA-256 of the key in `Authorization: Bearer KEY`; None where there is none."""
    if authorization[:7].lower() != _SCHEME:
        return None
    key = authorization[7:].strip()
    return hashlib.sha256(key).digest() if key else None


class Token:
    """What was found of a token."""

    __slots__ = ("account", "until_s", "why")

    def __init__(self, account: str, until_s: float, why: str) -> None:
        self.account = account
        """`namespace/name`; empty: it is not good."""
        self.until_s = until_s
        self.why = why


class Callers:
    """Whom a table's routes know. One for each table."""

    __slots__ = ("_accounts", "_clock", "_known", "_tokens", "_verifier", "table")

    def __init__(self, table: Table, clock: Clock) -> None:
        self.table = table
        self._clock = clock
        self._known: frozenset[bytes] | None = None
        self._accounts: frozenset[str] | None = None
        self._tokens: dict[bytes, Token] = {}
        self._verifier: Verifier | None = None

    def may_call(self, route: RouteEntry, digest: bytes | None, authorization: bytes) -> bool:
        """Whether a caller whose key is not among the route's may call it all the same."""
        if route.key_hashes is None or digest in route.key_hashes:
            return True
        return bool(route.accounts) and self.token(digest, authorization).account in route.accounts

    def token(self, digest: bytes | None, authorization: bytes) -> Token:
        """The caller's key as a ServiceAccount token."""
        if digest is None:
            return _NONE
        found = self._tokens.get(digest)
        now_s = self._clock.now_s()
        if found is None or now_s >= found.until_s:
            if len(self._tokens) >= _MAX_TOKENS:
                self._tokens.clear()
            found = self._tokens[digest] = self._verified(authorization[7:].strip(), now_s)
        return found

    def _verified(self, token: bytes, now_s: float) -> Token:
        issuer = self.table.fleet.issuer
        if issuer is None:
            return Token("", now_s + _REFUSED_S, "this proxy does not know by which keys ServiceAccount tokens are verified")
        from stepdown.proxy import tokens

        if self._verifier is None:
            self._verifier = tokens.Verifier(issuer)
        try:
            account, until_s = self._verifier.account(token, now_s)
        except tokens.TokenError as error:
            return Token("", now_s + _REFUSED_S, str(error))
        return Token(account, until_s, "")

    @property
    def accounts(self) -> frozenset[str]:
        """The ServiceAccounts of all routes."""
        if self._accounts is None:
            self._accounts = frozenset(each for route in self.table.routes for each in route.accounts)
        return self._accounts

    @property
    def known(self) -> frozenset[bytes]:
        """The hashes of all routes; made when first asked for, since a call that is allowed never asks."""
        if self._known is None:
            self._known = frozenset(each for route in self.table.routes for each in route.key_hashes or ())
        return self._known

    def visible(self, digest: bytes | None, authorization: bytes) -> list[RouteEntry]:
        """The routes that this caller may call."""
        return [route for route in self.table.routes if self.may_call(route, digest, authorization)]

    @property
    def guarded(self) -> bool:
        """Whether any route asks who calls."""
        return bool(self.known or self.accounts)

    def knows(self, digest: bytes | None, authorization: bytes) -> bool:
        """Whether the caller may call anything of what asks."""
        return digest in self.known or (bool(self.accounts) and self.token(digest, authorization).account in self.accounts)

    def said(self, digest: bytes | None, authorization: bytes) -> str:
        """What is wrong with the key, in words."""
        if not authorization:
            return "no API key was sent"
        said = "the API key that was sent is not one that any route names"
        if self.accounts and authorization.count(b".") == 2 and (token := self.token(digest, authorization)).why:
            said += f". As a ServiceAccount token: {token.why}"
        return said

    def stranger(self, digest: bytes | None, authorization: bytes, model: str, unknown: str) -> ApiError:
        """What somebody is told who asked for a route that does not exist (`unknown` says so) or is not theirs.

        The two must sound the same, or a stranger could find out the names of other teams' routes: a caller whose key opens
        some route is told 404 for both, one without such a key 401 for both. Where no route of the fleet asks for a key there
        is nothing to hide.
        """
        if not self.guarded:
            return NotFound(unknown, param="model", code="model_not_found")
        if self.knows(digest, authorization):
            return NotFound(
                f"there is no route {model!r} that this key may call; GET /v1/models lists those that it may",
                param="model",
                code="model_not_found",
            )
        return Unauthenticated(
            f"there is no route {model!r} that may be called so: {self.said(digest, authorization)}. Send"
            f" `Authorization: Bearer KEY` with a key whose SHA-256 stands in the route's spec.callers, or with the token of a"
            f" ServiceAccount that does"
        )


_NONE: Final = Token("", 0.0, "no API key was sent")
