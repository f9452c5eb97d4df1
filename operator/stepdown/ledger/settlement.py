"""An upstream's invoice against the ledger: what was unreconciled is charged, kept or released. `Ledger.reconcile` calls this.

Only what can be spent no more is touched, and only if the bill covers every moment at which it can have been: a proxy that was
lost has held leases for one horizon, and its requests have ended an hour and a bit later. It is closed for good: should it come
back, it is told to take another name. What it held is from then on with an instance that no proxy can be, one an invoice's
month: `granted` is all that came to it, `consumed` what the invoice charged, `returned` what it released. So every sum of the
ledger goes on being what it was, for an older build too, and a corrected invoice only changes these numbers.

An older copy of the ledger, from before the invoice, holds all of it again: nothing is released there that was not before.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from stepdown.budget.account import Invoiced
from stepdown.budget.invoice import Billed
from stepdown.budget.months import day_text, instant, month_of
from stepdown.budget.settlement import ModelCost, Pool, Settlement, divide
from stepdown.budget.statement import outermost
from stepdown.ledger import closing, store, terms
from stepdown.ledger.binding import DAY_S
from stepdown.ledger.errors import LedgerRefused
from stepdown.ledger.lease import Account, Lease
from stepdown.ledger.schema import accounts, bindings, counters, instances, leases, meta, names
from stepdown.ledger.store import Instance

PREFIX = "invoice "
"""Of an invoice's instance and of its row in `meta`, before the month. No proxy's: its fleet has no name."""

LONGEST_S = 3_720.0
"""The longest request (a route's timeout is an hour at most), drained, and what two clocks may differ by."""
LONGEST_HORIZON_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Statement:
    """What a bill says, for one span of days."""

    month: str
    digest: str
    first_day: int
    through_day: int
    """The bill is complete up to the end of this UTC day."""
    models: tuple[Billed, ...]

    @property
    def start_s(self) -> int:
        return self.first_day * DAY_S

    @property
    def end_s(self) -> int:
        return (self.through_day + 1) * DAY_S


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What came of it."""

    settlement: Settlement
    changed: bool
    supersedes: str
    """The day on which another invoice of the month was read; empty: there was none, or it was this one."""
    waiting: tuple[str, ...]
    """What is unreconciled and could not be settled by this bill, a sentence each."""
    closed: tuple[str, ...]
    """Instances that are closed for good."""


def reconcile(connection: sa.Connection, said: Statement, now_s: float) -> Reconciled:
    """In one transaction that nobody else's can come between. Raises LedgerRefused, and changes nothing."""
    known = read(connection).get(said.month)
    _check(connection, said, known, now_s)
    lost = store.load_instances(connection, state="lost")
    mine = lost.pop(PREFIX + said.month, None)
    waiting: list[str] = []
    doubted_s = terms.doubted_s(connection)
    over = [each for each in lost.values() if not each.name.startswith(PREFIX) and _covered(each, said, doubted_s, waiting)]
    touched = _touched(connection, [each.id for each in (*over, *([mine] if mine else []))])
    strays = [each for each in touched.values() if each.unaccounted and _strays_covered(each, said, doubted_s, waiting)]
    moved = _held(over, strays, touched.values(), said)
    if mine is None and any(moved.values()):
        mine = _instance(connection, said.month, now_s)
    pools = []
    for account in touched.values():
        before = account.leases[mine.id].granted if mine is not None and mine.id in account.leases else 0
        held = before + moved[account.id]
        if held:
            pools.append(_pool(connection, account, held, said))
    pools = _nested(connection, pools)
    settlement = divide(_costs(connection, said), pools)
    for instance in over:
        instance.unheard = 0  # What it may have had beyond this ledger is in the pools.
        closing.close(connection, instance, touched.values(), {})
    for account in strays:
        account.forgive(account.unaccounted)
    by_name = {account.name: account for account in touched.values()}
    changed = bool(over or strays)
    for share in settlement.shares:
        assert mine is not None
        changed |= by_name[share.account].state(mine.id, share.held_nusd, share.released_nusd, share.charged_nusd)
    store.save_accounts(connection, touched.values())
    store.save_instances(connection, over)
    changed |= _remember(connection, said, settlement, known, now_s)
    supersedes = known.read_day if known is not None and known.digest != said.digest else ""
    return Reconciled(settlement, changed, supersedes, tuple(waiting), tuple(each.name for each in over))


@dataclass(frozen=True, slots=True)
class Known:
    """An invoice that was read, as the ledger keeps it."""

    digest: str
    through_day: int
    billed_nusd: int
    metered_nusd: int
    excess_nusd: int
    short_nusd: int
    slack_nusd: int
    read_day: str


def read(connection: sa.Connection) -> dict[str, Known]:
    """The last invoice of every month, by month."""
    rows = connection.execute(sa.select(meta.c.name, meta.c.value).where(meta.c.name.like(f"{PREFIX}%")))
    return {row.name.removeprefix(PREFIX): Known(**json.loads(row.value)) for row in rows}


def invoiced(connection: sa.Connection, loaded: Iterable[Account]) -> dict[int, tuple[int, Invoiced | None]]:
    """By account: what invoices of whatever month have charged to it, and what that of its own month has come to."""
    known = read(connection)
    if not known:
        return {}
    select = sa.select(instances.c.id, instances.c.name).where(instances.c.name.in_([PREFIX + month for month in known]))
    numbers = {row.name.removeprefix(PREFIX): row.id for row in connection.execute(select)}
    found = {}
    for account in loaded:
        charged = sum(account.leases[number].consumed for number in numbers.values() if number in account.leases)
        month = month_of(account.start_s, account.end_s, "UTC")
        own = _own(known[month], month, account.leases.get(numbers.get(month, 0))) if month in known else None
        found[account.id] = (charged, own)
    return found


def _own(invoice: Known, month: str, lease: Lease | None) -> Invoiced:
    """`lease`: what the account held and the invoice has divided; None: it held nothing."""
    return Invoiced(
        month=month,
        through=day_text(invoice.through_day),
        billed_nusd=invoice.billed_nusd,
        metered_nusd=invoice.metered_nusd,
        excess_nusd=invoice.excess_nusd,
        short_nusd=invoice.short_nusd,
        slack_nusd=invoice.slack_nusd,
        charged_nusd=lease.consumed if lease is not None else 0,
        kept_nusd=lease.committed - lease.consumed if lease is not None else 0,
        released_nusd=lease.returned if lease is not None else 0,
    )


# Parts ----------------------------------------------------------------------------------------------------------------


def _check(connection: sa.Connection, said: Statement, known: Known | None, now_s: float) -> None:
    if now_s < said.end_s:
        raise LedgerRefused(
            f"{day_text(said.through_day)} is not over in UTC, so no bill of it is complete: wait, or say with --through up to"
            " which day it is"
        )
    if known is not None and said.through_day < known.through_day:
        raise LedgerRefused(
            f"an invoice of {said.month} that is complete up to {day_text(known.through_day)} was read on {known.read_day}: one"
            f" up to {day_text(said.through_day)} says less, and nothing can be settled by it"
        )
    awaiting = sa.select(accounts.c.name).where(accounts.c.awaited > 0).limit(1)
    if (name := connection.execute(awaiting).scalar()) is not None:
        raise LedgerRefused(
            f"the ledger's keeper has just begun, and waits for its proxies to say what they hold ({name}): try again in a"
            " minute, while it runs"
        )


def _covered(instance: Instance, said: Statement, doubted_s: float, waiting: list[str]) -> bool:
    """Whether everything that nobody was told of was spent on days of the bill."""
    from_s = instance.last_s - LONGEST_S
    until_s = instance.last_s + instance.horizon_s + max(instance.longest_s, LONGEST_S)
    if instance.unheard:  # It may have gone on for as long as the copy of the ledger knows nothing.
        until_s = max(until_s, doubted_s + LONGEST_HORIZON_S + LONGEST_S)
    if said.start_s <= from_s and until_s <= said.end_s:
        return True
    waiting.append(
        f"instance {instance.name} may have spent from {_moment(from_s)} to {_moment(until_s)}, which this bill does not cover"
        " whole: what it holds stays unreconciled"
    )
    return False


def _strays_covered(account: Account, said: Statement, doubted_s: float, waiting: list[str]) -> bool:
    """The same for those of whom this ledger, an older copy once, knows nothing."""
    until_s = doubted_s + LONGEST_HORIZON_S + LONGEST_S
    if said.start_s <= account.start_s and until_s <= said.end_s:
        return True
    waiting.append(
        f"account {account.name} holds what an older copy of the ledger cannot account for, from {_moment(account.start_s)} to"
        f" {_moment(until_s)}, which this bill does not cover whole: it stays unreconciled"
    )
    return False


def _moment(at_s: float) -> str:
    return instant(at_s).strftime("%Y-%m-%dT%H:%MZ") if at_s < 1e11 else "a time that is not known"


def _touched(connection: sa.Connection, at: Sequence[int]) -> dict[int, Account]:
    """Every account in which one of these has a lease, and every one with something unaccounted."""
    found = store.load_accounts(connection, accounts.c.unaccounted > 0)
    for part in store.chunks(at):
        found |= store.load_accounts(
            connection, accounts.c.id.in_(sa.select(leases.c.account).where(leases.c.instance.in_(part)))
        )
    store.load_leases(connection, found)
    return found


def _held(over: Sequence[Instance], strays: Sequence[Account], touched: Iterable[Account], said: Statement) -> dict[int, int]:
    """By account: what comes to the invoice's instance. A lease of a period in which its holder cannot have spent anything
    that it has not told of is let go."""
    found = {account.id: 0 for account in touched}
    for account in touched:
        for instance in over:
            lease = account.leases.get(instance.id)
            if lease is not None and account.start_s < said.end_s and account.end_s > said.start_s:
                found[account.id] += lease.committed - lease.consumed
    for account in strays:
        found[account.id] += account.unaccounted
    return found


def _instance(connection: sa.Connection, month: str, now_s: float) -> Instance:
    """The invoice's own: lost, so that what it holds counts as unreconciled, and known to the witness by no number."""
    made = store.create_instance(connection, PREFIX + month, "", now_s)
    made.state, made.born = "lost", terms.AGAIN
    store.save_instances(connection, [made])
    return made


def _pool(connection: sa.Connection, account: Account, held_nusd: int, said: Statement) -> Pool:
    """With what of the account's spend is an estimate of the bill's days, as far as that is certain."""
    charged = account.closed_estimated - account.closed_unmetered
    charged += sum(lease.estimated for lease in account.leases.values())
    whole = said.start_s <= account.start_s and account.end_s <= said.end_s
    return Pool(
        account.name,
        held_nusd,
        min(charged, _estimated(connection, account, said)),
        account.closed_unmetered if whole else 0,
    )


def _estimated(connection: sa.Connection, account: Account, said: Statement) -> int:
    """By the counters of the account's routes; nothing if it has not held all of them all the time."""
    mine = bindings.c.account == account.id
    if connection.execute(sa.select(bindings.c.route).where(mine, bindings.c.bound.is_(False)).limit(1)).first() is not None:
        return 0
    first = max(said.first_day, -(-account.start_s // DAY_S))
    last = min(said.through_day, account.end_s // DAY_S - 1)
    routes = sa.select(bindings.c.route).where(mine)
    select = sa.select(sa.func.sum(counters.c.estimated_nusd)).where(
        counters.c.route.in_(routes), counters.c.day >= first, counters.c.day <= last
    )
    return int(connection.execute(select).scalar() or 0)


def _nested(connection: sa.Connection, pools: Sequence[Pool]) -> list[Pool]:
    """With those that lie within others marked."""
    held: dict[str, set[int]] = {each.account: set() for each in pools}
    select = sa.select(accounts.c.name, bindings.c.route).join(bindings, bindings.c.account == accounts.c.id)
    for part in store.chunks(list(held)):
        for account, route in connection.execute(select.where(accounts.c.name.in_(part))):
            held[account].add(route)
    outer = outermost(held)
    return [replace(each, outer=each.account in outer) for each in pools]


def _costs(connection: sa.Connection, said: Statement) -> list[ModelCost]:
    """Every model that was billed or metered."""
    sums = [sa.func.sum(counters.c[name]) for name in ("cost_nusd", "estimated_nusd", "requests")]
    select = (
        sa.select(names.c.name, *sums)
        .join(names, names.c.id == counters.c.model)
        .where(counters.c.day >= said.first_day, counters.c.day <= said.through_day)
        .group_by(names.c.name)
    )
    metered = {row[0]: tuple(int(each) for each in row[1:]) for row in connection.execute(select)}
    told = {each.model: each for each in said.models}
    found = []
    for model in sorted(metered.keys() | told.keys()):
        cost, estimated, requests = metered.get(model, (0, 0, 0))
        each = told.get(model, Billed(model, 0, 0))
        found.append(ModelCost(model, each.nusd, each.slack_nusd, cost, estimated, each.requests, requests))
    return found


def _remember(connection: sa.Connection, said: Statement, made: Settlement, known: Known | None, now_s: float) -> bool:
    """True: it is news."""
    new = Known(
        said.digest,
        said.through_day,
        made.billed_nusd,
        made.metered_nusd,
        made.excess_nusd,
        made.short_nusd,
        made.slack_nusd,
        instant(now_s).strftime("%Y-%m-%d"),
    )
    if known is not None and replace(known, read_day=new.read_day) == new:
        return False
    fields: Mapping[str, object] = {name: getattr(new, name) for name in Known.__slots__}
    store.write_meta(connection, PREFIX + said.month, json.dumps(fields, sort_keys=True))
    return True
