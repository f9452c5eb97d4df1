"""What a message must be before the ledger lets it near its sums. `Ledger.sync` and `sync.service` call this.

One message that cannot be true is refused by itself: it must not spoil the batch that it would have travelled in.
"""

from collections.abc import Iterator, Mapping

from stepdown.ledger.errors import LedgerRefused
from stepdown.ledger.traffic import SUMS
from stepdown.model.sync import SyncRequest

MAX_NUSD = 2**60
"""About a billion USD. Sums of a handful of these are exact in 64 bits."""

MAX_NAME = 512
MAX_INSTANCE = 128
MAX_DAY = 365 * 400
MAX_SILENCE_S = 86_400.0


def check(request: SyncRequest) -> None:
    """Raises LedgerRefused, naming the field, for names that do not fit and numbers that cannot be."""
    if not 0 < len(request.instance) <= MAX_INSTANCE:
        raise LedgerRefused(f"sync: instance has {len(request.instance)} characters; 1 to {MAX_INSTANCE} are valid")
    for name in _names(request):
        if not 0 < len(name) <= MAX_NAME:
            raise LedgerRefused(f"sync from {request.instance}: a name has {len(name)} characters; 1 to {MAX_NAME} are valid")
        if "\0" in name:
            raise LedgerRefused(f"sync from {request.instance}: the name {name!r} has a character that no database can keep")
    if not 0.0 <= request.longest_s <= MAX_SILENCE_S:
        raise LedgerRefused(f"sync from {request.instance}: longest_s is {request.longest_s}; 0 to {MAX_SILENCE_S} are valid")
    for where, number in _numbers(request):
        if not 0 <= number < MAX_NUSD:
            raise LedgerRefused(f"sync from {request.instance}: {where} is {number}; 0 to {MAX_NUSD - 1} are valid")
    for each in request.counters:
        if each.day > MAX_DAY:
            raise LedgerRefused(f"sync from {request.instance}: a counter's day is {each.day}, beyond {MAX_DAY}")


def _names(request: SyncRequest) -> Iterator[str]:
    yield request.instance
    yield request.fleet
    for report in request.leases:
        yield report.account
    for ask in request.asks:
        for rung in ask.rungs:
            yield from rung
    for each in request.counters:
        yield each.route
        yield each.model


def _numbers(request: SyncRequest) -> Iterator[tuple[str, int]]:
    yield "seq", request.seq
    for report in request.leases:
        for name in ("granted", "returned", "consumed", "estimated", "reserved", "want"):
            yield f"{name} of {report.account}", getattr(report, name)
    for ask in request.asks:
        yield "the id of an ask", ask.id
        for rung in ask.rungs:
            yield from _amounts(ask.id, rung)
    for each in request.counters:
        yield "a counter's day", each.day
        for name in (*SUMS, "overrun_nusd"):
            yield f"{name} of {each.route}", getattr(each, name)


def _amounts(ask: int, rung: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    for account, nusd in rung.items():
        yield f"what ask {ask} needs of {account}", nusd
