"""What the ledger shows: balances, instances, and the specs it keeps for the plan. `Ledger`'s views call this."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from stepdown.budget.account import Balance
from stepdown.budget.months import day_of
from stepdown.budget.serving import Serving, Unheard, enforcement
from stepdown.budget.statement import AccountBooks
from stepdown.ledger import binding, settlement, store, traffic
from stepdown.ledger.lease import Account
from stepdown.ledger.schema import accepted_specs, accounts, bindings, names
from stepdown.ledger.store import Instance


@dataclass(frozen=True, slots=True)
class LeaseView:
    """One lease, in nUSD. `unreconciled_nusd`: what a lost instance holds beyond what it reported."""

    account: str
    granted_nusd: int
    returned_nusd: int
    consumed_nusd: int
    estimated_nusd: int
    reserved_nusd: int
    excess_nusd: int
    unreconciled_nusd: int


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One proxy process. `state`: open, lost (silent for longer than its leases live) or closed."""

    name: str
    fleet: str
    state: str
    first_s: float
    last_s: float
    leases: tuple[LeaseView, ...]
    pod: str = ""
    """In which it runs, or may still run though it is not heard."""


def balances(connection: sa.Connection, now_s: float, *, ended: bool) -> dict[str, Balance]:
    everything = store.load_accounts(connection, *([] if ended else [accounts.c.end_s > now_s]))
    store.load_leases(connection, everything, everything=True)
    serving = [_serving(each) for each in store.load_serving(connection)]
    newest = binding.newest_by_shard(connection)
    overruns = traffic.exceeded(connection)
    invoices = settlement.invoiced(connection, everything.values())
    found = {}
    for each in everything.values():
        charged, invoice = invoices.get(each.id, (0, None))
        balance = _balance(each, newest.get(each.id, {}), serving)
        found[each.name] = replace(balance, overruns=overruns.get(each.id, ()), invoiced_nusd=charged, invoice=invoice)
    return found


def account_books(connection: sa.Connection, since_day: int, until_day: int, now_s: float) -> tuple[AccountBooks, ...]:
    """Every account whose period has a part in these days, with the routes that it holds or has held."""
    known = names_by_id(connection)
    held: dict[str, set[str]] = {}
    select = sa.select(accounts.c.name, bindings.c.route).join(bindings, bindings.c.account == accounts.c.id)
    for account, route in connection.execute(select):
        held.setdefault(account, set()).add(known[route])
    return tuple(
        AccountBooks(each, frozenset(held.get(name, ())))
        for name, each in sorted(balances(connection, now_s, ended=True).items())
        if day_of(each.start_s) <= until_day and day_of(each.end_s - 1) >= since_day
    )


def names_by_id(connection: sa.Connection) -> dict[int, str]:
    return {row.id: row.name for row in connection.execute(sa.select(names))}


def _balance(account: Account, newest: Mapping[int, int], serving: Iterable[Serving]) -> Balance:
    enforced, unheard = enforcement(newest, serving)
    open_ = [lease for lease in account.leases.values() if not lease.lost]
    return Balance(
        account=account.name,
        budget=account.budget,
        start_s=account.start_s,
        end_s=account.end_s,
        limit_nusd=account.limit,
        opening_nusd=account.opening,
        settled_nusd=account.consumed,
        estimated_nusd=account.closed_estimated + sum(lease.estimated for lease in account.leases.values()),
        reserved_nusd=sum(lease.reserved for lease in open_),
        idle_nusd=account.idle,
        unreconciled_nusd=account.unreconciled,
        awaited_nusd=account.awaited,
        excess_nusd=account.closed_excess + sum(lease.excess for lease in account.leases.values()),
        unmetered_nusd=account.closed_unmetered,
        enforced=enforced,
        unheard=unheard,
    )


def _serving(each: Instance) -> Serving:
    if each.state == "open":
        return Serving(each.acked)
    return Serving(each.acked, Unheard(each.fleet.partition("/")[0], each.pod, each.pod_uid, each.last_s))


def instances(connection: sa.Connection, *, closed: bool) -> list[InstanceView]:
    everything = store.load_accounts(connection)
    store.load_leases(connection, everything, everything=True)
    held: dict[int, list[LeaseView]] = {}
    for account in sorted(everything.values(), key=lambda each: each.name):
        for lease in account.leases.values():
            held.setdefault(lease.instance, []).append(
                LeaseView(
                    account=account.name,
                    granted_nusd=lease.granted,
                    returned_nusd=lease.returned,
                    consumed_nusd=lease.consumed,
                    estimated_nusd=lease.estimated,
                    reserved_nusd=lease.reserved,
                    excess_nusd=lease.excess,
                    unreconciled_nusd=lease.committed - lease.consumed if lease.lost else 0,
                )
            )
    return [
        InstanceView(each.name, each.fleet, each.state, each.first_s, each.last_s, tuple(held.get(each.id, ())), each.pod)
        for each in store.load_instances(connection).values()
        if closed or each.state != "closed"
    ]


def accept(connection: sa.Connection, specs: Mapping[str, tuple[int, str]], gone: Sequence[str]) -> None:
    known = {row.uid: (row.generation, row.spec) for row in connection.execute(sa.select(accepted_specs))}
    new = [{"uid": uid, "generation": g, "spec": spec} for uid, (g, spec) in specs.items() if uid not in known]
    old = [{"u": uid, "generation": g, "spec": s} for uid, (g, s) in specs.items() if uid in known and known[uid] != (g, s)]
    if new:
        connection.execute(accepted_specs.insert(), new)
    if old:
        connection.execute(accepted_specs.update().where(accepted_specs.c.uid == sa.bindparam("u")), old)
    lost = [{"u": uid} for uid in gone if uid in known]
    if lost:
        connection.execute(accepted_specs.delete().where(accepted_specs.c.uid == sa.bindparam("u")), lost)
