"""The line to an operator in the cluster: TLS, the pod's token, and the leader among replicas. `syncclient` speaks on it.

The server must have a certificate for the host of `--sync-url` by a CA of the bundle, also where a follower has sent us on to
the leader's own address: whoever answers there, the token goes to the operator only. Token and bundle are files that the
kubelet changes; each is looked at with every message.
"""

import asyncio
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from stepdown.model.sync import SyncUnavailable
from stepdown.proxy.files import WatchedFile
from stepdown.proxy.keys import clean
from stepdown.proxy.syncclient import Streams

_PORT = 443


class BadUrl(ValueError):
    """Not an https URL of a host."""


class _Error(msgspec.Struct):
    leader: str = ""


class _NotLeader(msgspec.Struct):
    error: _Error


class HttpsLine:
    """To the Service; or, once a follower has said where, to the leader, until that fails."""

    def __init__(self, url: str, ca: Path, token: Path) -> None:
        """`ca`: a PEM bundle; nothing else is trusted. Raises BadUrl."""
        self._service = _address(url)
        self._leader: tuple[str, int] | None = None
        self._ca, self._token = WatchedFile(ca), WatchedFile(token)
        self._trusted: bytes | None = None
        self._context: ssl.SSLContext | None = None
        host, port = self._service
        self._host_header = b"host: %b:%d\r\n" % (host.encode("idna"), port)

    @property
    def where(self) -> str:
        host, port = self._leader or self._service
        return f"https://{host}:{port}"

    async def open(self) -> Streams:
        context = self._trust()
        host, port = self._leader or self._service
        try:
            return await asyncio.open_connection(host, port, ssl=context, server_hostname=self._service[0])
        except ssl.SSLCertVerificationError as error:
            self._context = None
            raise SyncUnavailable(
                f"{self.where} has a certificate that {self._ca.path} does not vouch for: {error.verify_message}"
            ) from error

    def headers(self) -> bytes:
        token = self._token.read()
        token = clean(token) if token is not None else None
        if token is None:
            raise SyncUnavailable(f"there is no token in {self._token.path}, which a projected ServiceAccount token mounts")
        return b"%bauthorization: Bearer %b\r\n" % (self._host_header, token)

    def is_stale(self) -> bool:
        return self._ca.read() is not self._trusted

    def moved(self, answer: bytes) -> bool:
        try:
            self._leader = _address(msgspec.json.decode(answer, type=_NotLeader).error.leader)
        except (BadUrl, msgspec.MsgspecError):
            return False
        return True

    def broken(self) -> None:
        self._leader = None

    def _trust(self) -> ssl.SSLContext:
        bundle = self._ca.read()
        if self._context is None or bundle is not self._trusted:
            if bundle is None:
                raise SyncUnavailable(f"there is no CA bundle in {self._ca.path}, which the fleet's ConfigMap mounts")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            try:
                context.load_verify_locations(cadata=bundle.decode("ascii"))
            except (ssl.SSLError, ValueError) as error:
                raise SyncUnavailable(f"the CA bundle in {self._ca.path} cannot be read: {error}") from error
            self._context, self._trusted = context, bundle
        return self._context


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _PORT
    except ValueError as error:
        raise BadUrl(f"{url!r} is no URL: {error}") from error
    if parts.scheme != "https" or not host or parts.path not in ("", "/"):
        raise BadUrl(f"{url!r} is not like https://stepdown.stepdown-system.svc:8443")
    return host, port
