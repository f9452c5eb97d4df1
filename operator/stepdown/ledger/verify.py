"""Whether the ledger's own sums agree. `Ledger.verify` calls this; `stepdown status`, tests and the demo ask it.

It recomputes from the rows, by other statements than those that wrote them, and names each difference by its object.
"""

from collections.abc import Iterator

import sqlalchemy as sa

from stepdown.ledger import store
from stepdown.ledger.binding import DAY
from stepdown.ledger.lease import Account
from stepdown.ledger.schema import accounts, bindings, counters, instances, leases, names, openings, tickets


def everything(connection: sa.Connection) -> list[str]:
    return damage(connection) + differences(connection)


def damage(connection: sa.Connection) -> list[str]:
    """What its keeper would refuse the file for: pages that no sum is made of may be damaged, too."""
    if connection.dialect.name != "sqlite":
        return []
    found = connection.exec_driver_sql("PRAGMA quick_check(3)").scalars()
    return [f"the file is damaged: {' '.join(text.split())}" for text in found if text != "ok"]


def differences(connection: sa.Connection) -> list[str]:
    everything = store.load_accounts(connection)
    store.load_leases(connection, everything, everything=True)
    found = list(_openings(connection, everything))
    for account in everything.values():
        found += _leases(account)
    found += _left_behind(connection)
    found += _unmetered(connection, everything)
    return found


def _openings(connection: sa.Connection, everything: dict[int, Account]) -> Iterator[str]:
    select = sa.select(openings.c.account, sa.func.sum(openings.c.opening)).group_by(openings.c.account)
    sums = {row[0]: int(row[1]) for row in connection.execute(select)}
    for account in everything.values():
        if account.opening != sums.get(account.id, 0):
            yield f"account {account.name} opens with {account.opening} nUSD, its openings add up to {sums.get(account.id, 0)}"


def _leases(account: Account) -> Iterator[str]:
    for lease in account.leases.values():
        where = f"account {account.name} at instance {lease.instance}"
        if min(lease.numbers) < 0:
            yield f"{where}: a negative sum in {lease.numbers}"
        if lease.used > lease.held:
            yield f"{where}: uses {lease.used} nUSD of {lease.held} held"
        if lease.estimated > lease.consumed:
            yield f"{where}: estimated {lease.estimated} of {lease.consumed} nUSD consumed"
    if account.awaited < 0 or account.unaccounted < 0:
        yield f"account {account.name}: awaits {account.awaited} nUSD, {account.unaccounted} are unaccounted: less than nothing"
    if account.closed_unmetered > account.closed_consumed or account.closed_estimated > account.closed_consumed:
        yield f"account {account.name}: closed instances consumed {account.closed_consumed} nUSD, parts of it are more"


def _left_behind(connection: sa.Connection) -> Iterator[str]:
    closed = sa.select(instances.c.id).where(instances.c.state == "closed", instances.c.id != 0)
    for table in (leases, tickets, counters, openings):
        count = connection.execute(sa.select(sa.func.count()).where(table.c.instance.in_(closed))).scalar()
        if count:
            yield f"{count} rows of {table.name} belong to instances that are closed"


def _unmetered(connection: sa.Connection, everything: dict[int, Account]) -> Iterator[str]:
    """What the counters of whole days say of bound routes, their account must have charged."""
    select = (
        sa.select(bindings.c.account, sa.func.sum(counters.c.cost_nusd))
        .join(accounts, accounts.c.id == bindings.c.account)
        .join(counters, counters.c.route == bindings.c.route)
        .join(names, names.c.id == bindings.c.route)
        .where(bindings.c.bound, counters.c.day * DAY >= accounts.c.start_s, (counters.c.day + 1) * DAY <= accounts.c.end_s)
        .group_by(bindings.c.account)
    )
    for id_, cost in connection.execute(select):
        account = everything[id_]
        if int(cost) > account.spent:
            yield f"account {account.name}: its routes' counters say {cost} nUSD, charged are {account.spent}"
