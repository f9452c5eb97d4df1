"""What is asked of the operator over plain HTTP where there are several replicas. If this fails, `kubectl stepdown` says half
of the time that there is no operator.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp

from stepdown.watch.http import HttpServer, Views


async def _text() -> bytes:
    return b""


def server(figures: Any, leader: Callable[[], str] = str) -> HttpServer:
    """`figures`: None where it does not lead."""

    async def status() -> Any:
        return figures

    async def days(since: int, until: int) -> Any:
        return figures and {**figures, "days": until - since}

    return HttpServer(Views(ready=str, metrics=_text, status=status, counters=days, books=days, leader=leader))


async def ask(of: HttpServer, path: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{of.port}{path}") as answer:
        return answer.status, await (answer.json() if answer.content_type == "application/json" else answer.text())


def test_a_replica_that_follows_has_the_leaders_figures() -> None:
    """A Service chooses the replica, and who asks wants the money."""

    async def scene() -> None:
        leading = server({"who": "leader"})
        await leading.start("127.0.0.1", 0)
        where = f"http://127.0.0.1:{leading.port}"
        following = server(None, lambda: where)
        await following.start("127.0.0.1", 0)
        assert await ask(following, "/v1/status") == (200, {"who": "leader"})
        assert await ask(following, "/v1/counters?since_day=1&until_day=4") == (200, {"who": "leader", "days": 3})
        assert (await ask(following, "/v1/books?since_day=x"))[0] == 400, "and its refusals"
        assert await ask(following, "/healthz") == (200, "ok\n")
        await leading.stop()
        status, answer = await ask(following, "/v1/status")
        assert (status, "does not answer" in answer["error"]["message"]) == (503, True)
        await following.stop()

    asyncio.run(scene())


def test_two_that_take_each_other_for_the_leader_do_not_go_round_in_circles() -> None:
    """While the Lease changes hands, one question must not become thousands."""

    async def scene() -> None:
        one = server(None, lambda: f"http://127.0.0.1:{other.port}")
        other = server(None, lambda: f"http://127.0.0.1:{one.port}")
        for each in (one, other):
            await each.start("127.0.0.1", 0)
        status, answer = await ask(one, "/v1/status")
        assert (status, "does not lead" in answer["error"]["message"]) == (503, True)
        for each in (one, other):
            await each.stop()

    asyncio.run(scene())
