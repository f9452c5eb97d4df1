"""Rows as the last transaction left them, for the next: nearly all messages are about the same few. `Round` reads here.

`Ledger` keeps one over its transactions, as it keeps `store.Names`, and forgets it whenever the tables may say something else:
when a transaction has failed; after any but `judge`; where somebody else has written meanwhile (`Database.stamp`); and after a
round that changed rows otherwise than through the objects that are kept here. What is forgotten is read anew.
"""

from collections.abc import Collection, Iterator

import sqlalchemy as sa

from stepdown.ledger import store
from stepdown.ledger.lease import Account
from stepdown.ledger.store import Instance


class Memory:
    """Instances, the accounts in which they have leases, and their tickets, as the tables have them."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}
        self._accounts: dict[str, Account] = {}
        self._whole: set[int] = set()
        """Instances of which every account in which they have a lease is here."""
        self._tickets: dict[int, dict[int, int]] = {}

    def forget(self) -> None:
        self._instances.clear()
        self._accounts.clear()
        self._whole.clear()
        self._tickets.clear()

    def instances(self, connection: sa.Connection, wanted: Collection[str]) -> dict[str, Instance]:
        """By name; those that the ledger knows."""
        if unknown := [name for name in wanted if name not in self._instances]:
            self._instances |= store.load_instances(connection, unknown)
        return {name: self._instances[name] for name in wanted if name in self._instances}

    def accounts(self, connection: sa.Connection, named: Collection[str], at: Collection[int]) -> dict[str, Account]:
        """Accounts by name, and all in which one of these instances has a lease; with every lease of each."""
        missing, partial = (
            [name for name in named if name not in self._accounts],
            [each for each in at if each not in self._whole],
        )
        if missing or partial:
            for name, account in store.load_named(connection, missing, partial).items():
                self._accounts.setdefault(name, account)  # One that is here already has the same in it.
            self._whole.update(partial)
        wanted = set(named)
        found = {
            name: account
            for name, account in self._accounts.items()
            if name in wanted or any(each in account.leases for each in at)
        }
        for account in found.values():
            for each in at:
                if (lease := account.leases.get(each)) is not None:
                    lease.earmarked = 0
        return found

    def tickets(self, connection: sa.Connection, of: Collection[int]) -> dict[int, dict[int, int]]:
        """By instance and ask: the rung that was granted. To be changed with the table."""
        if unknown := [each for each in of if each not in self._tickets]:
            self._tickets |= store.load_tickets(connection, unknown)
        return {each: self._tickets[each] for each in of}

    def differences(self, connection: sa.Connection) -> Iterator[str]:
        """What is remembered otherwise than the tables have it; nothing, unless this file is wrong."""
        instances = store.load_instances(connection, list(self._instances))
        for name, instance in self._instances.items():
            if instances.get(name) != instance:
                yield f"instance {name} is remembered as {instance}, the ledger has {instances.get(name)}"
        accounts = store.load_named(connection, list(self._accounts), list(self._whole))
        for name in accounts.keys() | self._accounts.keys():
            kept, there = _numbers(self._accounts.get(name)), _numbers(accounts.get(name))
            if kept != there:
                yield f"account {name} is remembered as {kept}, the ledger has {there}"
        tickets = store.load_tickets(connection, list(self._tickets))
        if tickets != self._tickets:
            yield f"tickets are remembered as {self._tickets}, the ledger has {tickets}"


def _numbers(account: Account | None) -> tuple[object, ...] | None:
    """All that is decided by; a lease of nothing is none."""
    if account is None:
        return None
    leases = {each.instance: (each.numbers, each.lost) for each in account.leases.values() if any(each.numbers)}
    plain = (account.limit, account.hard, account.start_s, account.end_s)
    return (*plain, account.totals, account.committed, account.consumed, account.idle, account.unreconciled, leases)
