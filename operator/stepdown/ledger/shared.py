"""A word or two that replicas of the operator share, whoever of them leads: in the ledger's database, apart from the money.

`sync.cakept` keeps the CA here. It is no part of the ledger that a keeper keeps: no epoch guards it, and no export carries it.
"""

from stepdown.ledger import store
from stepdown.ledger.database import open_database


class Shared:
    """A connection of its own, to be closed soon. Raises LedgerErrors."""

    def __init__(self, place: str) -> None:
        self._database = open_database(place, create=True, read_only=False, beside=True)

    def read(self, name: str) -> str | None:
        with self._database.transaction(write=False) as connection:
            return store.read_meta(connection, name, "") or None

    def replace(self, name: str, was: str | None, now: str) -> str:
        """What is there afterwards: `now`, unless it no longer was what it `was`."""
        with self._database.opening() as connection:  # one at a time
            found = store.read_meta(connection, name, "") or None
            if found != was and found is not None:
                return found
            store.write_meta(connection, name, now)
            return now

    def close(self) -> None:
        self._database.close()
