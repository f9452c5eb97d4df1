"""One HTTP request to the API server and its answer, or a ClusterError. `client` and `watching` call it, nobody else.

The session (TLS, proxies, pooling) is the Kubernetes client's. What is added is what an operator lives by: a time limit on
every request, at most so many at once, an error of ours for whatever a server or a network can do, and renewed credentials.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from yarl import URL

from stepdown import __version__
from stepdown.cluster.clock import elapsed_s
from stepdown.cluster.config import Credentials
from stepdown.cluster.errors import ClusterError, Unauthorized, Unavailable, error_of

log = logging.getLogger(__name__)

AT_ONCE = 32
"""Requests under way; watches not counted."""
_SAID = 256
"""Warnings of the API server that are remembered, to be logged once."""

Query = Sequence[tuple[str, str]]


class Limits(NamedTuple):
    """Seconds."""

    connect_s: float = 5.0
    total_s: float = 30.0
    silence_s: float = 60.0
    """Of a watch, which is then asked for again: a connection that a firewall has forgotten is silent for ever. Bookmarks do
    not tell it from a quiet one: the API server sends none for a kind of which it has seen no change since it started."""


LIMITS = Limits()


class Request(NamedTuple):
    """One request."""

    method: str
    path: str
    what: str
    """In words, for errors: `apply Deployment shop/web`."""
    query: Query = ()
    body: Mapping[str, Any] | None = None
    content_type: str = "application/json"
    accept: str = "application/json"


class Silent(Unavailable):
    """A stream on which nothing has come for so long that nobody can say whether there is anybody at its other end."""


class Answered(NamedTuple):
    """One request that has ended, for metrics."""

    method: str
    path: str
    status: int
    """0: no answer."""
    seconds: float


class Wire:
    """The connections to one API server."""

    def __init__(self, configuration: Configuration, credentials: Credentials, limits: Limits = LIMITS) -> None:
        # A watch holds its connection: with enough namespaces a limit of the pool would be a deadlock. AT_ONCE bounds the rest.
        configuration.connection_pool_maxsize = 0
        self._configuration, self._credentials, self._limits = configuration, credentials, limits
        self._rest = RESTClientObject(configuration)
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._said: set[str] = set()
        self.answered: Callable[[Answered], None] = _nobody
        """Called after every request."""

    @property
    def host(self) -> str:
        return self._configuration.host

    async def close(self) -> None:
        await self._rest.close()

    async def access(self, renewed: bool) -> tuple[str, str, str | None, str | None, str | None, bool]:
        """Server, Authorization, and the files of the CA, the client's certificate and key; whether nothing is verified."""
        authorization = await self._credentials.header()
        if renewed and await self._credentials.renew(authorization):
            authorization = await self._credentials.header()
        its = self._configuration
        return its.host, authorization, its.ssl_ca_cert, its.cert_file, its.key_file, not its.verify_ssl

    async def request(self, request: Request, *, timeout_s: float | None = None) -> bytes:
        """The body of a 2xx. Raises ClusterError. With a `timeout_s` of its own it does not queue: a Lease cannot wait."""
        total_s = self._limits.total_s if timeout_s is None else timeout_s
        limit = aiohttp.ClientTimeout(total=total_s, connect=min(self._limits.connect_s, total_s))
        queue = self._at_once if timeout_s is None else contextlib.nullcontext()
        async with queue, self._exchange(request, limit) as response:
            return await response.read()

    @contextlib.asynccontextmanager
    async def stream(self, request: Request, *, timeout_s: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of a 2xx as it comes. `timeout_s`: when the server will have ended it. Raises ClusterError, then Silent."""
        limits = self._limits
        limit = aiohttp.ClientTimeout(total=timeout_s + limits.total_s, connect=limits.connect_s, sock_read=limits.silence_s)
        async with self._exchange(request, limit) as response:
            yield response.content.iter_any()

    @contextlib.asynccontextmanager
    async def _exchange(self, request: Request, limit: aiohttp.ClientTimeout) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response once its head has come with a 2xx; what goes wrong until its end is a ClusterError."""
        started_s, status = elapsed_s(), 0
        try:
            async with asyncio.timeout(self._limits.total_s):  # a stream has a longer limit, but its head comes at once
                response = await self._send(request, limit)
            status = response.status
            try:
                self._warn(response)
                yield response
            finally:
                if not response.content.at_eof():  # else the connection is back in the pool already
                    response.close()
        except ClusterError as error:
            status = status or error.status
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._reload_authorities(error)
            kind = Silent if status and isinstance(error, aiohttp.SocketTimeoutError) else Unavailable
            raise kind(f"{request.what}: {_said(error, limit, self._limits, self.host)}") from error
        finally:
            self.answered(Answered(request.method, request.path, status, elapsed_s() - started_s))

    async def _send(self, request: Request, limit: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        url = URL(self.host + request.path + ("?" + urlencode(request.query) if request.query else ""), encoded=True)
        headers = {"Accept": request.accept, "Content-Type": request.content_type, "User-Agent": f"stepdown/{__version__}"}
        authorization = await self._credentials.header()
        renewed = False
        while True:
            if authorization:
                headers["Authorization"] = authorization
            answer = await self._rest.request(  # type: ignore[no-untyped-call]
                request.method, url, headers=headers, body=request.body, _request_timeout=limit
            )
            response: aiohttp.ClientResponse = answer.response
            if 200 <= response.status < 300:
                return response
            try:
                error = _refusal(response, await response.read(), request.what)
            finally:
                response.close()
            # A token that has just been replaced is refused once: the file has the new one.
            if renewed or not isinstance(error, Unauthorized) or not await self._credentials.renew(authorization):
                raise error
            authorization, renewed = await self._credentials.header(), True

    def _warn(self, response: aiohttp.ClientResponse) -> None:
        """What the API server warns of (Pod Security, deprecated versions) is logged, once each."""
        for warning in response.headers.getall("Warning", ()):
            if warning not in self._said and len(self._said) < _SAID:
                self._said.add(warning)
                log.warning("the API server warns: %s", warning)

    def _reload_authorities(self, error: Exception) -> None:
        """A cluster's CA may have been replaced while we ran: its file is read again for the next connection."""
        if not isinstance(error, aiohttp.ClientConnectorCertificateError) or not self._configuration.ssl_ca_cert:
            return
        with contextlib.suppress(OSError):  # an SSLError is one: the file is being written
            context: ssl.SSLContext = self._rest.ssl_context
            context.load_verify_locations(cafile=self._configuration.ssl_ca_cert)


def decode(body: bytes, what: str) -> dict[str, Any]:
    """An answer's JSON object. Raises Unavailable for anything else: a proxy's page, half an answer."""
    try:
        answer = msgspec.json.decode(body)
    except ValueError as error:
        raise Unavailable(f"{what}: the answer is not JSON ({error}): {_start(body)}") from error
    if not isinstance(answer, dict):
        raise Unavailable(f"{what}: the answer is not an object: {_start(body)}")
    return answer


def _refusal(response: aiohttp.ClientResponse, body: bytes, what: str) -> ClusterError:
    """A status that is no 2xx as an error, by the Status object in its body where there is one."""
    try:
        said = msgspec.json.decode(body)
    except ValueError:
        said = None
    status = said if isinstance(said, dict) and said.get("kind") == "Status" else {}
    details: dict[str, Any] = status["details"] if isinstance(status.get("details"), dict) else {}
    return error_of(
        response.status,
        str(status.get("reason") or response.reason or ""),
        str(status.get("message") or _start(body)),
        details,
        _retry_after_s(response.headers.get("Retry-After"), details),
        what=what,
    )


def _retry_after_s(header: str | None, details: Mapping[str, Any]) -> float | None:
    """Seconds, as Kubernetes writes the header and its Status."""
    if header is not None and header.strip().isdecimal():
        return float(header)
    asked = details.get("retryAfterSeconds")
    return float(asked) if isinstance(asked, int) and asked > 0 else None


def _said(error: Exception, limit: aiohttp.ClientTimeout, limits: Limits, host: str) -> str:
    """What happened, in words: the exceptions' own are often empty."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return f"no connection to {host} within {limit.connect:g} s"
        case aiohttp.SocketTimeoutError():
            return f"{host} has been silent for {limit.sock_read:g} s"
        case TimeoutError():
            return f"no whole answer from {host} within {min(limit.total or limits.total_s, limits.total_s):g} s"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | ConnectionError():
            return f"{host} closed the connection before its answer was whole ({str(error) or type(error).__name__})"
    return f"no answer from {host}: {str(error) or type(error).__name__}"


def _start(body: bytes) -> str:
    return body[:200].decode("utf-8", "replace").strip()


def _nobody(answered: Answered) -> None:
    """Until somebody counts."""
