"""The certificate that sync is served with: one that was given, or one of the operator's own CA. `sync.server` uses it.

What signs when is decided in `sync.rotation`, where the own CA is kept in `sync.cakept`; here is the live TLS context.
"""

import hashlib
import logging
import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from stepdown.sync import rotation
from stepdown.sync.cakept import Kept, write
from stepdown.sync.certs import Issued, ends_s, matches, new_ca, server_certificate
from stepdown.sync.errors import TlsError as TlsError
from stepdown.sync.rotation import Term

GIVEN = ("tls.crt", "tls.key", "ca.crt")

_log = logging.getLogger("stepdown.sync")


class Tls(Protocol):
    """A server's certificate, kept good while it serves."""

    context: ssl.SSLContext
    """For the listening socket. What `tend` renews is in force for the next handshake."""

    @property
    def bundle(self) -> str:
        """PEM: what proxies must trust, now and after the next rotation. It goes into each fleet's ConfigMap (`ca.crt`)."""

    def tend(self, now_s: float) -> None:
        """Re-reads or rotates what is due. Cheap when nothing is. Raises TlsError; then all stays as it was."""

    def published(self, bundle: str, now_s: float) -> None:
        """Every fleet's ConfigMap has this bundle. Raises TlsError."""


class GivenTls:
    """`tls.crt`, `tls.key` and `ca.crt` of a mounted Secret, such as cert-manager writes; read again when they change."""

    def __init__(self, path: Path) -> None:
        """Raises TlsError."""
        self._path = path
        self.context = _server_context()
        self._bundle = ""
        self._stamp: tuple[tuple[int, int, int], ...] = ()
        self.tend(0.0)

    @property
    def bundle(self) -> str:
        return self._bundle

    def tend(self, now_s: float) -> None:
        try:
            stamp = tuple(_stamp(self._path / name) for name in GIVEN)
            if stamp == self._stamp:
                return
            bundle = (self._path / GIVEN[2]).read_text(encoding="ascii")
            # Another context first: a pair that does not match must not reach the one that serves.
            for context in (_server_context(), self.context):
                context.load_cert_chain(self._path / GIVEN[0], self._path / GIVEN[1])
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=bundle)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise TlsError(
                f"the certificate in {self._path} cannot be used: {error}. It needs tls.crt, tls.key and ca.crt, each PEM"
            ) from error
        self._stamp, self._bundle = stamp, bundle

    def published(self, bundle: str, now_s: float) -> None:
        """Whoever gives the certificate sees to its rotation."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One CA as it is kept."""

    key: str
    certificate: str
    made_s: float
    told_s: float | None = None

    @property
    def term(self) -> Term:
        name = hashlib.sha256(self.certificate.encode()).hexdigest()
        return Term(name, self.made_s, ends_s(self.certificate), self.told_s)


class _State(msgspec.Struct, frozen=True, kw_only=True):
    authorities: tuple[_Entry, ...] = ()


class Authority:
    """The operator's own CA, as it is kept for all that share it, and the certificate that it issues for this process.

    A CA that is lost, or cannot be read any more, is followed by a new one: proxies trust what their ConfigMap says.
    """

    def __init__(self, kept: Kept, names: Sequence[str], now_s: float) -> None:
        """`names`: DNS names and addresses of the server (`service_names`). Raises TlsError."""
        self._kept, self._names = kept, tuple(names)
        self.context = _server_context()
        self._signed_by, self._server_ends_s = "", 0.0
        self._raw: bytes | None = None
        """As last read or written."""
        self._entries: tuple[_Entry, ...] = ()
        self._now_s = now_s
        self.tend(now_s)

    @property
    def bundle(self) -> str:
        alive = {term.id for term in rotation.in_bundle(self._terms, self._now_s)}
        return "".join(each.certificate for each in self._entries if each.term.id in alive)

    @property
    def server_ends_s(self) -> float:
        """When the server's certificate ends, Unix seconds."""
        return self._server_ends_s

    def tend(self, now_s: float) -> None:
        self._now_s = now_s
        self._look()
        if rotation.needs_another(self._terms, now_s):
            fresh = new_ca(now_s, rotation.LIFE_S)
            entry = _Entry(key=fresh.key, certificate=fresh.certificate, made_s=now_s)
            alive = {term.id for term in rotation.in_bundle(self._terms, now_s)}
            if self._keep((*(each for each in self._entries if each.term.id in alive), entry)):
                _log.info("a new CA for sync was made: %s", self._kept)
        signer = rotation.signer(self._terms, now_s)
        assert signer is not None, "a CA was just made"
        if signer.id != self._signed_by or rotation.server_is_due(self._server_ends_s, now_s):
            self._issue(signer, now_s)

    def published(self, bundle: str, now_s: float) -> None:
        known = frozenset(each.term.id for each in self._entries if each.certificate in bundle)
        terms = {term.id: term for term in rotation.told(self._terms, known, now_s)}
        entries = tuple(msgspec.structs.replace(each, told_s=terms[each.term.id].told_s) for each in self._entries)
        if entries != self._entries:
            self._keep(entries)
        self.tend(now_s)

    @property
    def _terms(self) -> list[Term]:
        return [each.term for each in self._entries]

    def _issue(self, signer: Term, now_s: float) -> None:
        entry = next(each for each in self._entries if each.term.id == signer.id)
        ca = Issued(entry.key, entry.certificate)
        life_s = rotation.SERVER_LIFE_S
        issued = server_certificate(ca, self._names, now_s, life_s)
        # OpenSSL reads files only. The key leaves the disk again at once.
        draft = self._kept.scratch / f".server-{os.getpid()}.pem"
        try:
            write(draft, (issued.certificate + issued.key).encode())
            self.context.load_cert_chain(draft)
        except OSError as error:
            raise TlsError(f"the server's certificate cannot be written to {draft.parent}: {error}") from error
        finally:
            draft.unlink(missing_ok=True)
        self._signed_by, self._server_ends_s = signer.id, ends_s(issued.certificate)

    def _look(self) -> None:
        """Takes over what another replica has written. What is in use stays in use where there is nothing good to follow it."""
        raw = self._kept.read()
        if raw == self._raw:
            return
        self._raw = raw
        entries = self._understood(raw)
        if entries:
            self._entries = entries
        elif self._entries:
            self._keep(self._entries)

    def _understood(self, raw: bytes | None) -> tuple[_Entry, ...]:
        if raw is None:
            return ()
        try:
            entries = msgspec.json.decode(raw, type=_State).authorities
            broken = "" if all(matches(Issued(each.key, each.certificate)) for each in entries) else "a key is of another CA"
        except (ValueError, msgspec.MsgspecError) as error:
            entries, broken = (), str(error)
        if broken:
            _log.error("the sync CA %s is not used, a new one is made: %s", self._kept, broken)
            return ()
        return entries

    def _keep(self, entries: tuple[_Entry, ...]) -> bool:
        """Kept first, then in use: a CA that is not kept is lost with this process. False: another replica was faster."""
        data = msgspec.json.encode(_State(authorities=entries))
        if self._kept.keep(data, self._raw):
            self._raw, self._entries = data, entries
            return True
        self._look()
        return False


def service_names(namespace: str, *others: str, service: str = "stepdown") -> tuple[str, ...]:
    """The Service's names from anywhere in the cluster, and what else leads to this process, such as its pod's address."""
    names = (service, f"{service}.{namespace}", f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local")
    return tuple(dict.fromkeys(name for name in (*names, *others) if name))


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are of this product
    context.num_tickets = 0  # a proxy keeps its connection; nothing is resumed
    return context


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
