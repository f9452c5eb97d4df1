"""Accounts, leases, instances and tickets between the tables and the desk: what one transaction reads, and what of it changed.

`Ledger` calls this inside its transactions. Reads are a few statements a batch, not a ticket; writes are what differs from what
was read. No statement here is SQLite's alone.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeVar

import sqlalchemy as sa

from stepdown.ledger.bulk import put
from stepdown.ledger.lease import Account, Lease, start_of
from stepdown.ledger.schema import accounts, instances, leases, meta, names, tickets

CHUNK = 500
"""Names or numbers in one IN list."""

UNKNOWN_PERIOD_S = 31 * 86_400
"""How long a period is whose end nobody has said."""

_LEASE = ("granted", "returned", "consumed", "estimated", "reserved", "excess", "want")
_TICKET = ("instance", "ask", "rung")
_TOTALS = (
    "opening",
    "closed_consumed",
    "closed_estimated",
    "closed_excess",
    "closed_unmetered",
    "awaited",
    "unaccounted",
)
_PLAIN = ("id", "name", "budget", "start_s", "end_s", "limit_nusd", "hard")
_ACCOUNT = [accounts.c[name] for name in (*_PLAIN, *_TOTALS)]

# What each sync runs is built once: to build a statement takes longer than SQLite takes to run it.
_ANY_OF: sa.BindParameter[Any] = sa.bindparam("any_of", expanding=True)
_INSTANCES_NAMED = sa.select(instances).where(instances.c.name.in_(_ANY_OF))
_HELD = sa.select(leases.c.account).where(leases.c.instance.in_(sa.bindparam("at", expanding=True)))
_ACCOUNTS_OF = sa.union(
    sa.select(*_ACCOUNT).where(accounts.c.name.in_(sa.bindparam("named", expanding=True))),
    sa.select(*_ACCOUNT).where(accounts.c.id.in_(_HELD)),
)
"""By two indexes, and one question."""
_LEASES = sa.select(leases, instances.c.state).join(instances, instances.c.id == leases.c.instance)
_LEASES_OF = _LEASES.where(leases.c.account.in_(_ANY_OF))
_SAVE_TOTALS = accounts.update().where(accounts.c.id == sa.bindparam("key"))
_SERVING = sa.select(instances).where(sa.or_(instances.c.state == "open", instances.c.pod_uid > ""))
_LIFE_S = instances.c.horizon_s + instances.c.longest_s
_MARK_LOST = (
    instances.update()
    .where(
        instances.c.state == "open",
        instances.c.last_s + _LIFE_S < sa.bindparam("now_s", type_=sa.Float),
        sa.bindparam("listened_s", type_=sa.Float) > _LIFE_S,
    )
    .values(state="lost")
)
_TICKETS_OF = sa.select(tickets).where(tickets.c.instance.in_(_ANY_OF))
_GONE_TICKETS = tickets.delete().where(tickets.c.instance == sa.bindparam("of"), tickets.c.ask.in_(_ANY_OF))
_META = sa.select(meta.c.value).where(meta.c.name == sa.bindparam("of"))


@dataclass(slots=True)
class Instance:
    """One proxy process as the ledger knows it."""

    id: int
    name: str
    fleet: str
    state: str
    seq: int
    first_s: float
    last_s: float
    longest_s: float
    horizon_s: float
    born: int = 0
    """Under which number the witness knows it (see `terms`)."""
    unheard: int = 0
    """Flags of `terms`."""
    pod: str = ""
    pod_uid: str = ""
    """Where it runs, or may still run (`seat`)."""
    acked: dict[int, int] = field(default_factory=dict)
    """By shard: the newest binding revision that it obeys."""


T = TypeVar("T")


def chunks(values: Collection[T]) -> Iterator[Sequence[T]]:
    listed = list(values)
    for start in range(0, len(listed), CHUNK):
        yield listed[start : start + CHUNK]


# Instances ------------------------------------------------------------------------------------------------------------


def load_instances(
    connection: sa.Connection, wanted: Collection[str] | None = None, *, state: str | None = None
) -> dict[str, Instance]:
    """By name; None: all but nobody, or all of one state."""
    if wanted is None:
        every = sa.select(instances).where(instances.c.id != 0)
        rows = list(connection.execute(every if state is None else every.where(instances.c.state == state)))
    else:
        rows = [row for part in chunks(wanted) for row in connection.execute(_INSTANCES_NAMED, {"any_of": part})]
    return {row.name: _instance(row) for row in rows}


def _instance(row: sa.Row[Any]) -> Instance:
    plain: dict[str, Any] = dict(row._mapping)
    acked = json.loads(plain.pop("acked"))
    return Instance(**plain, acked={int(shard): revision for shard, revision in acked.items()})


def load_serving(connection: sa.Connection) -> list[Instance]:
    """Those that may serve: they are open, or their pod is not known to be gone."""
    return [_instance(row) for row in connection.execute(_SERVING)]


def create_instance(connection: sa.Connection, name: str, fleet: str, now_s: float) -> Instance:
    new = Instance(0, name, fleet, "open", -1, now_s, now_s, 0.0, 0.0)
    result = connection.execute(instances.insert().values(**_instance_row(new)))
    assert result.inserted_primary_key is not None
    new.id = result.inserted_primary_key[0]
    return new


def save_instances(connection: sa.Connection, changed: Iterable[Instance]) -> None:
    rows = [{"id": each.id, **_instance_row(each)} for each in changed]
    if rows:
        put(connection, instances, tuple(rows[0]), [tuple(row.values()) for row in rows])


def _instance_row(each: Instance) -> dict[str, object]:
    return {
        "name": each.name,
        "fleet": each.fleet,
        "state": each.state,
        "seq": each.seq,
        "first_s": each.first_s,
        "last_s": each.last_s,
        "longest_s": each.longest_s,
        "horizon_s": each.horizon_s,
        "born": each.born,
        "unheard": each.unheard,
        "acked": json.dumps({str(shard): revision for shard, revision in each.acked.items()}),
    }


def seat(connection: sa.Connection, instance: Instance) -> None:
    """Notes its pod, which is once. Who spoke from there before has ended: a pod has one log, and who speaks has its lock."""
    if instance.pod_uid:
        vacate(connection, [instance.pod_uid])
    connection.execute(
        instances.update().where(instances.c.id == instance.id).values(pod=instance.pod, pod_uid=instance.pod_uid)
    )


def vacate(connection: sa.Connection, pod_uids: Collection[str]) -> None:
    """Nothing runs in these pods."""
    for part in chunks(pod_uids):
        connection.execute(instances.update().where(instances.c.pod_uid.in_(part)).values(pod="", pod_uid=""))


def last_heard_s(connection: sa.Connection) -> float:
    return float(connection.execute(sa.select(sa.func.max(instances.c.last_s))).scalar() or 0.0)


def mark_lost(connection: sa.Connection, now_s: float, heard_from_s: float = 0.0) -> bool:
    """Silent for longer than its leases and its longest request live: it stays charged with all that it holds.

    `heard_from_s`: before that, nobody could have been heard. True: there is one more.
    """
    return connection.execute(_MARK_LOST, {"now_s": now_s, "listened_s": now_s - heard_from_s}).rowcount > 0


# Accounts and leases --------------------------------------------------------------------------------------------------


def load_accounts(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> dict[int, Account]:
    """Accounts that meet a condition, by row, without their leases."""
    return _accounts(connection.execute(sa.select(*_ACCOUNT).where(*where)))


def _accounts(rows: Iterable[Any]) -> dict[int, Account]:
    return {row[0]: Account(*row) for row in rows}


def load_named(connection: sa.Connection, wanted: Collection[str], at: Collection[int]) -> dict[str, Account]:
    """Accounts by name, and all in which one of these instances has a lease; with every lease of each."""
    found: dict[int, Account] = {}
    for named, there in zip_longest(chunks(wanted), chunks(at), fillvalue=()):
        found |= _accounts(connection.execute(_ACCOUNTS_OF, {"named": named, "at": there}))
    load_leases(connection, found)
    return {account.name: account for account in found.values()}


def load_leases(connection: sa.Connection, into: dict[int, Account], *, everything: bool = False) -> None:
    """Every lease of these accounts (`everything`: that is all accounts, and one statement will do)."""
    parts = [None] if everything else list(chunks(into))
    for part in parts:
        for row in connection.execute(_LEASES) if part is None else connection.execute(_LEASES_OF, {"any_of": part}):
            if row.account in into:
                into[row.account].add(Lease(*row[:9], lost=row.state == "lost"))


def create_account(
    connection: sa.Connection, name: str, budget: str, start_s: int, end_s: int, limit_nusd: int, hard: bool
) -> Account:
    values = {"name": name, "budget": budget, "start_s": start_s, "end_s": end_s, "limit_nusd": limit_nusd, "hard": hard}
    result = connection.execute(accounts.insert().values(**values, **dict.fromkeys(_TOTALS, 0)))
    assert result.inserted_primary_key is not None
    return Account(result.inserted_primary_key[0], name, budget, start_s, end_s, limit_nusd, hard, 0, 0, 0, 0, 0)


def create_stub(connection: sa.Connection, name: str) -> Account:
    """An account that the plan has not named: with a limit of 0, until the plan does. `start_of` has said that it is one."""
    start_s = start_of(name) or 0
    return create_account(connection, name, name.rpartition("@")[0], start_s, start_s + UNKNOWN_PERIOD_S, 0, True)


def save_accounts(connection: sa.Connection, changed: Iterable[Account]) -> None:
    """Writes the totals and leases that differ from what was read."""
    totals: list[dict[str, int]] = []
    rows: list[tuple[int, ...]] = []
    for account in changed:
        if account.totals != account.stored:
            totals.append({"key": account.id, **dict(zip(_TOTALS, account.totals, strict=True))})
            account.stored = account.totals
        for lease in account.leases.values():
            numbers = lease.numbers
            if lease.stored != numbers and (lease.stored is not None or any(numbers)):
                rows.append((account.id, lease.instance, *numbers))
            lease.stored = numbers
    if totals:
        connection.execute(_SAVE_TOTALS, totals)
    put(connection, leases, ("account", "instance", *_LEASE), rows)


def drop_leases(connection: sa.Connection, instance: int) -> None:
    connection.execute(leases.delete().where(leases.c.instance == instance))
    connection.execute(tickets.delete().where(tickets.c.instance == instance))


# Tickets --------------------------------------------------------------------------------------------------------------


def load_tickets(connection: sa.Connection, of: Collection[int]) -> dict[int, dict[int, int]]:
    """By instance and ask: the rung that was granted."""
    found: dict[int, dict[int, int]] = {instance: {} for instance in of}
    for part in chunks(of):
        for row in connection.execute(_TICKETS_OF, {"any_of": part}):
            found[row.instance][row.ask] = row.rung
    return found


def save_tickets(connection: sa.Connection, new: Sequence[dict[str, int]], gone: Sequence[dict[str, int]]) -> None:
    by_instance: dict[int, list[int]] = {}
    for each in gone:
        by_instance.setdefault(each["i"], []).append(each["a"])
    for instance, asks in by_instance.items():
        for part in chunks(asks):
            connection.execute(_GONE_TICKETS, {"of": instance, "any_of": part})
    put(connection, tickets, _TICKET, [tuple(each[name] for name in _TICKET) for each in new])


# Names and odds and ends ----------------------------------------------------------------------------------------------


class Names:
    """Routes and models as numbers. What a failed transaction had named is forgotten again (`forget`)."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def forget(self) -> None:
        self._ids.clear()
        self._names.clear()

    def ids(self, connection: sa.Connection, wanted: Collection[str]) -> dict[str, int]:
        """The numbers of these names, new ones where needed."""
        missing = {name for name in wanted if name not in self._ids}
        for part in chunks(missing):
            self._learn(connection.execute(sa.select(names).where(names.c.name.in_(part))))
        new = sorted(name for name in missing if name not in self._ids)
        if new:
            connection.execute(names.insert(), [{"name": name} for name in new])
            for part in chunks(new):
                self._learn(connection.execute(sa.select(names).where(names.c.name.in_(part))))
        return {name: self._ids[name] for name in wanted}

    def names(self, connection: sa.Connection) -> dict[int, str]:
        """Every number's name."""
        self._learn(connection.execute(sa.select(names)))
        return self._names

    def _learn(self, rows: Iterable[sa.Row[Any]]) -> None:
        for row in rows:
            self._ids[row.name] = row.id
            self._names[row.id] = row.name


def read_meta(connection: sa.Connection, name: str, default: str) -> str:
    value = connection.execute(_META, {"of": name}).scalar()
    return default if value is None else str(value)


def write_meta(connection: sa.Connection, name: str, value: str) -> None:
    put(connection, meta, ("name", "value"), [(name, value)])
