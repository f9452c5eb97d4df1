"""The operator's plain HTTP as the command line reads it. If one fails, a statement of a cluster is not to be had."""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec
import pytest

from stepdown.budget.account import Balance, Invoiced
from stepdown.budget.statement import AccountBooks, MonthBooks
from stepdown.ledger.errors import LedgerUnavailable
from stepdown.model.sync import Counter
from stepdown.model.traffic import Overrun
from stepdown.watch.http import HttpServer, Views

INVOICE = Invoiced("2026-11", "2026-11-30", 3, 2, 0, 0, 0, 1, 0, 4)
BALANCE = Balance("shop/team@5", "shop/team", 5, 9, 100, overruns=(Overrun("m", 7, 20_770),), invoice=INVOICE)
BOOKS = MonthBooks(
    (Counter(route="shop/chat", model="m", request_class="default", day=20_770, requests=1, cost_nusd=2),),
    {"shop/chat": ((20_758, "4711"), (20_760, ""))},
    (AccountBooks(BALANCE, frozenset({"shop/chat"})),),
)


def asked(path: str, books: Any = BOOKS) -> tuple[int, bytes]:
    async def nothing() -> Mapping[str, str]:
        return {}

    async def days(since_day: int, until_day: int) -> Any:
        assert (since_day, until_day) == (20_758, 20_787)
        if isinstance(books, Exception):
            raise books
        return books

    async def ask() -> tuple[int, bytes]:
        async def metrics() -> bytes:
            return b""

        server = HttpServer(Views(ready=str, metrics=metrics, status=nothing, counters=days, books=days))
        await server.start("127.0.0.1", 0)
        try:
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{server.port}{path}") as response:
                return response.status, await response.read()
        finally:
            await server.stop()

    return asyncio.run(ask())


def test_what_a_statement_is_made_of_comes_over_the_wire_as_it_is() -> None:
    """A nano-dollar, or a purchase order of one day, that is lost on its way is in no statement."""
    status, body = asked("/v1/books?since_day=20758&until_day=20787")
    assert status == 200
    assert msgspec.json.decode(body, type=MonthBooks) == BOOKS


@pytest.mark.parametrize(
    ("path", "books", "status", "words"),
    [
        ("/v1/books", BOOKS, 400, "since_day and until_day are whole days"),
        ("/v1/books?since_day=5&until_day=4", BOOKS, 400, "ask for 0 to"),
        ("/v1/books?since_day=20758&until_day=20787", None, 503, "does not lead"),
        ("/v1/books?since_day=20758&until_day=20787", LedgerUnavailable("no disk"), 503, "the ledger: no disk"),
    ],
)
def test_what_cannot_be_told_says_why(path: str, books: Any, status: int, words: str) -> None:
    """The command prints it."""
    found, body = asked(path, books)
    assert found == status and words in body.decode()
