"""Which routes an account holds, and what these spent before a lease charged them. `Ledger.bind` and `.sync` call this.

Every change of bindings has a revision. A shard's digest that is published afterwards stands for that revision, so an instance
that acknowledges it obeys the binding: from then on its leases charge the account. Until then, what its counters say of the
route is charged as *opening*, per account, route and instance, again with each message. `openings.seen` is up to where that
has been done.

Opening is never more than what the counters of all routes that the account ever held say beyond what its leases have charged:
so traffic that a lease has charged already is not charged twice, and all that was spent is charged once.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from stepdown.budget.account import Binding
from stepdown.ledger.lease import Account
from stepdown.ledger.schema import accounts, bindings, counters, leases, openings
from stepdown.ledger.store import Names, chunks, create_account, load_accounts, load_leases, save_accounts
from stepdown.model.config import shard_of

DAY_S = 86_400

FEW = 16
"""Accounts that a query may name one by one."""

DAY = sa.literal(DAY_S, sa.BigInteger)
"""For products that are larger than 32 bits."""

_IN_PERIOD = ((counters.c.day + 1) * DAY > accounts.c.start_s, counters.c.day * DAY < accounts.c.end_s)
"""Counters are by UTC day: an edge day counts in full."""

Pair = tuple[int, int]
"""Account and route."""


def bind(connection: sa.Connection, names: Names, wanted: Sequence[Binding], revision: int, now_s: float) -> bool:
    """Makes the accounts and bindings what the plan says. True: some binding is new, and `revision` is its number."""
    known = {each.name: each for each in load_accounts(connection, accounts.c.end_s > now_s).values()}
    for part in chunks([each.account for each in wanted if each.account not in known]):
        known |= {each.name: each for each in load_accounts(connection, accounts.c.name.in_(part)).values()}
    stored = _stored_pairs(connection, [each.id for each in known.values()])
    routes = names.ids(connection, {route for each in wanted for route in each.routes})
    new: list[Pair] = []
    again: list[Pair] = []
    gone: list[Pair] = []
    shards = {number: shard_of(name) for name, number in routes.items()}
    for binding in wanted:
        account = known.pop(binding.account, None)
        hardened = account is not None and binding.hard and not account.hard
        if account is None:
            account = create_account(
                connection,
                binding.account,
                binding.budget,
                binding.start_s,
                binding.end_s,
                binding.limit_nusd,
                binding.hard,
            )
        else:
            _update(connection, account, binding)
        have = stored.get(account.id, {})
        numbers = {routes[route] for route in binding.routes}
        new += [(account.id, route) for route in numbers if route not in have]
        again += [(account.id, route) for route in numbers if have.get(route) is False]
        gone += [(account.id, route) for route, bound in have.items() if bound and route not in numbers]
        if hardened:
            kept = [(account.id, route) for route in numbers if have.get(route)]
            _see(connection, kept)
            again += kept
    for account in known.values():
        if account.end_s > now_s:
            gone += [(account.id, route) for route, bound in stored.get(account.id, {}).items() if bound]
    _see(connection, gone)
    _set_pairs(connection, gone, bound=False)
    _set_pairs(connection, again, bound=True, revision=revision)
    if new:
        rows = [{"account": a, "route": r, "shard": shards[r], "bound": True, "revision": revision} for a, r in new]
        connection.execute(bindings.insert(), rows)
    if new or again:
        charge(connection, {}, bindings.c.revision == revision, now_s=now_s)
    return bool(new or again)


def charge(
    connection: sa.Connection,
    loaded: dict[str, Account],
    where: sa.ColumnElement[bool],
    *,
    now_s: float,
    obeyed: Mapping[int, int] | None = None,
) -> None:
    """Charges as opening what counters say of bound routes and no lease has charged, for the rows that `where` picks.

    `obeyed`: by shard, up to which revision the instance obeys; those bindings need no opening any more. Accounts that are
    already `loaded` are changed there, for the caller to save. A period that has not begun has no spend: the edge day is the
    last one's.
    """
    select = (
        sa.select(bindings.c.account, bindings.c.route, counters.c.instance, bindings.c.shard, bindings.c.revision, _COST)
        .join(accounts, accounts.c.id == bindings.c.account)
        .join(counters, counters.c.route == bindings.c.route)
        .where(bindings.c.bound, *_IN_PERIOD, accounts.c.start_s <= now_s, where)
        .group_by(bindings.c.account, bindings.c.route, counters.c.instance)
    )
    due = [row for row in connection.execute(select) if obeyed is None or row.revision > obeyed.get(row.shard, 0)]
    if not due:
        return
    by_id = {account.id: account for account in loaded.values()}
    extra = _load_missing(connection, by_id, {row.account for row in due})
    seen = _seen(connection, {row.account for row in due}, {row.instance for row in due})
    slack = _slack(connection, by_id, {row.account for row in due}, {row.instance for row in due})
    changed: dict[tuple[int, int, int], tuple[int, int]] = {}
    for row in due:
        key = (row.account, row.route, row.instance)
        opening, upto = seen.get(key, (0, 0))
        cost = int(row.cost)
        more = max(0, min(cost - upto, slack[row.account, row.instance]))
        slack[row.account, row.instance] -= more
        by_id[row.account].charge_opening(more)
        if more or cost != upto:
            changed[key] = (opening + more, cost)
    _write_openings(connection, seen, changed)
    save_accounts(connection, extra)


class Told(NamedTuple):
    """What an instance has told of an account's routes, in nUSD; and what of that is charged."""

    bound: dict[int, int]
    """By route that is bound now: what its counters say."""
    held: int
    """What the counters of all routes say that the account ever held."""
    charged: int
    """By leases, and as opening."""

    @property
    def slack(self) -> int:
        return self.held - self.charged


def told(connection: sa.Connection, of: Collection[int]) -> dict[tuple[int, int], Told]:
    """By account and instance, of these instances."""
    if not of:
        return {}
    charged: dict[tuple[int, int], int] = {}
    for part in chunks(of):
        consumed = sa.select(leases.c.account, leases.c.instance, leases.c.consumed).where(leases.c.instance.in_(part))
        opened = (
            sa.select(openings.c.account, openings.c.instance, sa.func.sum(openings.c.opening))
            .where(openings.c.instance.in_(part))
            .group_by(openings.c.account, openings.c.instance)
        )
        for select in (consumed, opened):
            for account, instance, nusd in connection.execute(select):
                charged[account, instance] = charged.get((account, instance), 0) + int(nusd)
    found: dict[tuple[int, int], Told] = {}
    for row in _costs(connection, None, set(of)):
        key = (row.account, row.instance)
        was = found.setdefault(key, Told({}, 0, charged.get(key, 0)))
        if row.bound:
            was.bound[row.route] = int(row.cost)
        found[key] = was._replace(held=was.held + int(row.cost))
    return {key: found.get(key, Told({}, 0, charged.get(key, 0))) for key in found.keys() | charged.keys()}


def charge_between(
    connection: sa.Connection,
    loaded: dict[str, Account],
    of: Collection[int],
    before: Mapping[tuple[int, int], Told],
) -> None:
    """Charges as opening what these instances have told of bound routes since `before`, and no lease and no opening has
    charged meanwhile: what an older copy of the ledger awaits, or has lost.

    Accounts that are `loaded` are changed there, for the caller to save.
    """
    save_accounts(connection, loaded.values())
    nothing = Told({}, 0, 0)
    due: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}
    for key, now in told(connection, of).items():
        was = before.get(key, nothing)
        slack = now.slack - was.slack
        for route, cost in now.bound.items():
            more = max(0, min(cost - was.bound.get(route, 0), slack))
            slack -= more
            if more:
                due.setdefault(key, {})[route] = (more, cost)
    if not due:
        return
    by_id = {account.id: account for account in loaded.values()}
    extra = _load_missing(connection, by_id, {account for account, _ in due})
    seen = _seen(connection, {account for account, _ in due}, {instance for _, instance in due})
    changed = {}
    for (account, instance), routes in due.items():
        for route, (more, cost) in routes.items():
            changed[account, route, instance] = (seen.get((account, route, instance), (0, 0))[0] + more, cost)
            by_id[account].charge_opening(more)
            by_id[account].account_for(more)
    _write_openings(connection, seen, changed)
    save_accounts(connection, extra)


def fold(connection: sa.Connection, instance: int) -> None:
    """A closed instance's openings become nobody's."""
    rows = list(connection.execute(sa.select(openings).where(openings.c.instance == instance)))
    if not rows:
        return
    seen = _seen(connection, {row.account for row in rows}, {0})
    changed = {}
    for row in rows:
        opening, upto = seen.get((row.account, row.route, 0), (0, 0))
        changed[row.account, row.route, 0] = (opening + row.opening, upto + row.seen)
    connection.execute(openings.delete().where(openings.c.instance == instance))
    _write_openings(connection, seen, changed)


def newest_by_shard(connection: sa.Connection) -> dict[int, dict[int, int]]:
    """By account and shard: the revision that an instance must obey for the account to be enforced."""
    select = (
        sa.select(bindings.c.account, bindings.c.shard, sa.func.max(bindings.c.revision))
        .where(bindings.c.bound)
        .group_by(bindings.c.account, bindings.c.shard)
    )
    found: dict[int, dict[int, int]] = {}
    for account, shard, revision in connection.execute(select):
        found.setdefault(account, {})[shard] = revision
    return found


_COST = sa.func.sum(counters.c.cost_nusd).label("cost")


def _stored_pairs(connection: sa.Connection, of: Collection[int]) -> dict[int, dict[int, bool]]:
    found: dict[int, dict[int, bool]] = {}
    for part in chunks(of):
        select = sa.select(bindings.c.account, bindings.c.route, bindings.c.bound).where(bindings.c.account.in_(part))
        for account, route, bound in connection.execute(select):
            found.setdefault(account, {})[route] = bound
    return found


def _set_pairs(connection: sa.Connection, pairs: Iterable[Pair], **values: object) -> None:
    rows = [{"a": account, "r": route, **values} for account, route in pairs]
    if rows:
        this = (bindings.c.account == sa.bindparam("a"), bindings.c.route == sa.bindparam("r"))
        connection.execute(bindings.update().where(*this), rows)


def _update(connection: sa.Connection, account: Account, binding: Binding) -> None:
    if (account.end_s, account.limit, account.hard) != (binding.end_s, binding.limit_nusd, binding.hard):
        values = {"end_s": binding.end_s, "limit_nusd": binding.limit_nusd, "hard": binding.hard}
        connection.execute(accounts.update().where(accounts.c.id == account.id).values(**values))


def _see(connection: sa.Connection, pairs: Sequence[Pair]) -> None:
    """From here on the counters of these pairs are looked at afresh: what they say now has been charged by leases."""
    if not pairs:
        return
    wanted = set(pairs)
    costs = {
        (row.account, row.route, row.instance): int(row.cost)
        for row in _costs(connection, {account for account, _ in wanted}, None)
        if (row.account, row.route) in wanted
    }
    seen = _seen(connection, {key[0] for key in costs}, {key[2] for key in costs})
    _write_openings(connection, seen, {key: (seen.get(key, (0, 0))[0], cost) for key, cost in costs.items()})


def _load_missing(connection: sa.Connection, by_id: dict[int, Account], wanted: set[int]) -> list[Account]:
    extra: dict[int, Account] = {}
    for part in chunks(wanted - by_id.keys()):
        extra |= load_accounts(connection, accounts.c.id.in_(part))
    load_leases(connection, extra)
    by_id |= extra
    return list(extra.values())


def _seen(connection: sa.Connection, of: set[int], at: set[int]) -> dict[tuple[int, int, int], tuple[int, int]]:
    found: dict[tuple[int, int, int], tuple[int, int]] = {}
    for some in chunks(of):
        for there in chunks(at):
            select = sa.select(openings).where(openings.c.account.in_(some), openings.c.instance.in_(there))
            for account, route, instance, opening, seen in connection.execute(select):
                found[account, route, instance] = (opening, seen)
    return found


def _slack(connection: sa.Connection, by_id: Mapping[int, Account], of: set[int], at: set[int]) -> dict[tuple[int, int], int]:
    """By account and instance: what the counters of all routes that it ever held say beyond what is charged already."""
    slack: dict[tuple[int, int], int] = {}
    for row in _costs(connection, of, at):
        slack[row.account, row.instance] = slack.get((row.account, row.instance), 0) + int(row.cost)
    for key in slack:
        account, lease = by_id[key[0]], by_id[key[0]].leases.get(key[1])
        if key[1] == 0:
            slack[key] -= account.closed_consumed - account.closed_unmetered
        elif lease is not None:
            slack[key] -= lease.consumed
    for (id_, _, instance), (opening, _) in _seen(connection, of, at).items():
        if (id_, instance) in slack:
            slack[id_, instance] -= opening
    return slack


def _costs(connection: sa.Connection, of: set[int] | None, at: set[int] | None) -> Iterator[Any]:
    """What counters say, in these accounts' periods, of every route that they ever held: by account, route and instance.

    A long list of accounts is looked for here, not by the database: it would look for each of them at every counter.
    """
    select = (
        sa.select(bindings.c.account, bindings.c.route, bindings.c.bound, counters.c.instance, _COST)
        .join(accounts, accounts.c.id == bindings.c.account)
        .join(counters, counters.c.route == bindings.c.route)
        .where(*_IN_PERIOD)
        .group_by(bindings.c.account, bindings.c.route, bindings.c.bound, counters.c.instance)
    )
    if of is None:
        pass
    elif len(of) <= FEW:
        select = select.where(bindings.c.account.in_(of))
    else:
        oldest = connection.execute(sa.select(sa.func.min(accounts.c.start_s)).where(accounts.c.id >= min(of))).scalar()
        select = select.where(bindings.c.account >= min(of), counters.c.day >= (oldest or 0) // DAY_S)
    for there in [None] if at is None else chunks(at):
        here = select if there is None else select.where(counters.c.instance.in_(there))
        for row in connection.execute(here):
            if of is None or row.account in of:
                yield row


def _write_openings(
    connection: sa.Connection,
    stored: Mapping[tuple[int, int, int], tuple[int, int]],
    changed: Mapping[tuple[int, int, int], tuple[int, int]],
) -> None:
    new = [
        {"account": a, "route": r, "instance": i, "opening": opening, "seen": seen}
        for (a, r, i), (opening, seen) in changed.items()
        if (a, r, i) not in stored
    ]
    old = [
        {"a": a, "r": r, "i": i, "opening": opening, "seen": seen}
        for (a, r, i), (opening, seen) in changed.items()
        if (a, r, i) in stored
    ]
    if new:
        connection.execute(openings.insert(), new)
    if old:
        this = (
            openings.c.account == sa.bindparam("a"),
            openings.c.route == sa.bindparam("r"),
            openings.c.instance == sa.bindparam("i"),
        )
        connection.execute(openings.update().where(*this), old)
