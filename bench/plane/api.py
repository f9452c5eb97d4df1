"""The API server as the bench asks it: forty requests in flight, and watches whose news carry the moment at which they came."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import aiohttp
import msgspec
from devcluster import ControlPlane

from bench.machine import BenchError
from stepdown.cluster.kinds import EVENT, OURS, KindRef

AT_ONCE = 40
KIND = {kind.kind: kind for kind in (*OURS, EVENT)}
_MERGE = {"Content-Type": "application/merge-patch+json"}
_LOOK_S = 0.02


class Metadata(msgspec.Struct, rename="camel"):
    name: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""


class Condition(msgspec.Struct, rename="camel"):
    type: str
    status: str
    reason: str = ""
    observed_generation: int = 0


class Status(msgspec.Struct, rename="camel"):
    conditions: list[Condition] = []
    step: dict[str, Any] = {}
    limit_usd: str = msgspec.field(default="", name="limitUSD")
    spent_usd: str = msgspec.field(default="", name="spentUSD")
    routes: Any = None


class Involved(msgspec.Struct):
    kind: str = ""
    name: str = ""


class Thing(msgspec.Struct, rename="camel"):
    """What the bench looks at, of an object of ours or of an Event."""

    metadata: Metadata
    status: Status = msgspec.field(default_factory=Status)
    involved_object: Involved = msgspec.field(default_factory=Involved)
    reason: str = ""

    def answers(self, type_: str, status: str = "True") -> bool:
        """Whether the condition says so about the object as it is now."""
        return any(
            each.type == type_ and each.status == status and each.observed_generation == self.metadata.generation
            for each in self.status.conditions
        )


class _List(msgspec.Struct):
    metadata: Metadata
    items: list[Thing]


class _News(msgspec.Struct):
    type: str
    object: Thing


_list = msgspec.json.Decoder(_List).decode
_news = msgspec.json.Decoder(_News).decode


class Watch:
    """The objects of a kind in the namespace as they were last heard of."""

    def __init__(self) -> None:
        self.objects: dict[str, Thing] = {}
        self.heard: list[Callable[[str, Thing, float], None]] = []
        """Told of each piece of news: its type, the object, and when it came (monotonic)."""
        self.lives: Callable[[], bool] = lambda: True

    async def until(self, true: Callable[[Mapping[str, Thing]], bool], what: str, timeout_s: float = 120.0) -> float:
        """The moment at which it was seen to hold, 20 ms late at most. Raises BenchError."""
        until_s = time.monotonic() + timeout_s
        while not true(self.objects):
            if time.monotonic() > until_s:
                raise BenchError(f"not within {timeout_s:.0f} s: {what}")
            if not self.lives():
                raise BenchError(f"the API server tells no more of what was waited for: {what}")
            await asyncio.sleep(_LOOK_S)
        return time.monotonic()

    async def until_all(self, count: int, type_: str, timeout_s: float = 120.0) -> float:
        """As `until`: there are so many objects, and the condition holds for each as it is now."""
        try:
            return await self.until(
                lambda found: len(found) == count and all(each.answers(type_) for each in found.values()), type_, timeout_s
            )
        except BenchError as error:
            lacking = sorted(name for name, each in self.objects.items() if not each.answers(type_))
            raise BenchError(
                f"{error}: {len(self.objects)} of {count} are there, {len(lacking)} lack it: {lacking[:5]}"
            ) from error

    async def first(self, wanted: Callable[[str, Thing], bool]) -> float:
        """The moment at which the first news came of which that holds."""
        found: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        def listen(type_: str, thing: Thing, at_s: float) -> None:
            if not found.done() and wanted(type_, thing):
                found.set_result(at_s)

        self.heard.append(listen)
        try:
            return await found
        finally:
            self.heard.remove(listen)

    def took(self, type_: str, thing: Thing, at_s: float) -> None:
        if type_ == "DELETED":
            self.objects.pop(thing.metadata.name, None)
        else:
            self.objects[thing.metadata.name] = thing
        for each in list(self.heard):
            each(type_, thing, at_s)


class Api:
    """As the admin. `async with Api(cluster, namespace) as api`."""

    def __init__(self, cluster: ControlPlane, namespace: str) -> None:
        self._cluster, self._namespace = cluster, namespace

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._cluster.ssl_context(), limit=0)
        self._session = aiohttp.ClientSession(self._cluster.server, connector=connector, timeout=aiohttp.ClientTimeout(60))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def create(self, objects: Iterable[Mapping[str, Any]]) -> float:
        """All of them, AT_ONCE in flight; the seconds that it took."""
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(thing: Mapping[str, Any]) -> None:
            async with turn:
                await self._ask("POST", self._path(thing["kind"]), thing)

        began_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for each in objects:
                tasks.create_task(one(each))
        return time.monotonic() - began_s

    async def patch(self, kind: str, name: str, spec: Mapping[str, Any]) -> float:
        """A merge patch of the spec; the moment of the API server's answer."""
        return await self._ask("PATCH", self._path(kind, name), {"spec": spec}, _MERGE)

    async def delete(self, kind: str, name: str) -> None:
        await self._ask("DELETE", self._path(kind, name))

    async def delete_all(self, kind: str) -> None:
        await self._ask("DELETE", self._path(kind))

    @asynccontextmanager
    async def watch(self, kind: str) -> AsyncIterator[Watch]:
        watch = Watch()
        version = await self._listed(kind, watch)
        following = asyncio.create_task(self._follow(kind, watch, version))
        watch.lives = lambda: not following.done()
        try:
            yield watch
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError, BenchError, aiohttp.ClientError):
                await following

    async def _listed(self, kind: str, watch: Watch) -> str:
        async with self._session.get(self._path(kind)) as response:
            listing = _list(await response.read())
        for each in listing.items:
            watch.took("ADDED", each, time.monotonic())
        return listing.metadata.resource_version

    async def _follow(self, kind: str, watch: Watch, version: str) -> None:
        forever = aiohttp.ClientTimeout(None)
        query = {"watch": "1", "resourceVersion": version, "timeoutSeconds": "7200"}
        async with self._session.get(self._path(kind), params=query, timeout=forever) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                at_s = time.monotonic()
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    news = _news(line)
                    watch.took(news.type, news.object, at_s)
        raise BenchError(f"the API server ended the watch on {kind}")

    async def _ask(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> float:
        async with self._session.request(method, path, json=body, headers=headers) as response:
            at_s = time.monotonic()
            if response.status >= 300:
                raise BenchError(f"{method} {path} was answered {response.status}: {(await response.text())[:500]}")
            await response.read()
            return at_s

    def _path(self, kind: str, name: str = "") -> str:
        found: KindRef = KIND[kind]
        return found.path(self._namespace if found.namespaced else "", name)
