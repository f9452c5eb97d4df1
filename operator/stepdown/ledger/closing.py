"""The end of an instance: its leases close at what it consumed, and a tombstone stays. `Round` and `Ledger` call this."""

from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from stepdown.ledger import binding, store, terms, traffic
from stepdown.ledger.errors import LedgerRefused
from stepdown.ledger.lease import Account
from stepdown.ledger.schema import accounts, leases
from stepdown.ledger.store import Instance


def close(
    connection: sa.Connection, instance: Instance, its_accounts: Iterable[Account], stated: Mapping[str, int] | None = None
) -> None:
    """Closes every lease at what was consumed, or at what is `stated`. The caller saves the accounts and the instance.

    Something still reserved in a closing message is charged: nobody will report what became of it.
    """
    for account in its_accounts:
        lease = account.leases.get(instance.id)
        if lease is not None:
            was, consumed = lease.committed, lease.used if stated is None else stated.get(account.name, lease.consumed)
            account.close(lease, consumed)
            if instance.unheard:  # Its own last word, or the administrator's first on it.
                account.account_for(consumed - was, long_silent=bool(instance.unheard & terms.LONG_SILENT))
    store.drop_leases(connection, instance.id)
    binding.fold(connection, instance.id)
    traffic.fold(connection, instance.id)
    instance.state = "closed"


def settle(connection: sa.Connection, name: str, stated: Mapping[str, int] | None) -> None:
    """Closes a lost instance at an administrator's word."""
    instance = store.load_instances(connection, [name]).get(name)
    if instance is None:
        raise LedgerRefused(f"the ledger knows no instance {name!r}: `stepdown status` lists those that are lost")
    if instance.state != "lost":
        raise LedgerRefused(f"instance {name} is {instance.state}, and only a lost one can be settled")
    held = sa.select(leases.c.account).where(leases.c.instance == instance.id)
    loaded = store.load_accounts(connection, accounts.c.id.in_(held))
    store.load_leases(connection, loaded)
    by_name = {account.name: account for account in loaded.values()}
    if instance.unheard:  # It may have been granted of accounts that this ledger did not hear of.
        for account in store.load_named(connection, set(stated or {}) - by_name.keys(), ()).values():
            account.lease(instance.id)
            by_name[account.name] = account
    for account_name, nusd in (stated or {}).items():
        if account_name not in by_name:
            raise LedgerRefused(f"instance {name} holds nothing of {account_name!r}; it holds {', '.join(sorted(by_name))}")
        reported = by_name[account_name].leases[instance.id].consumed
        if nusd < reported:
            raise LedgerRefused(f"instance {name} itself reported {reported} nUSD of {account_name}; {nusd} would be less")
    close(connection, instance, by_name.values(), stated or {})
    store.save_accounts(connection, by_name.values())
    store.save_instances(connection, [instance])
