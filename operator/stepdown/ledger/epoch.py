"""Who may write: the keeper that took the epoch last. `Ledger` looks here at the start of every transaction that writes.

A Lease of Kubernetes says who should lead, but a process that was paused past its end does not know yet that another one does.
The ledger knows: the number is compared in the very transaction that would grant, so an earlier leader's is undone before it
has done anything. Where a database locks rows, the row of the epoch is locked, and with it every other writer waits its turn.
"""

from typing import NamedTuple

import sqlalchemy as sa

from stepdown.ledger.errors import LedgerFenced
from stepdown.ledger.schema import meta
from stepdown.ledger.store import read_meta, write_meta

_EPOCH, _HOLDER, _TURN = "epoch", "holder", "turn"

_READ = sa.select(meta.c.name, meta.c.value).where(meta.c.name.in_((_EPOCH, _HOLDER, _TURN))).with_for_update()


class Epoch(NamedTuple):
    """As stored."""

    number: int
    """0: nobody has ever taken it, and whoever has the file may write."""
    holder: str
    turn: int
    """How many transactions have written, where the database counts them (`Database.may_go_back`)."""


def read(connection: sa.Connection) -> Epoch:
    """Locks the row until the transaction ends, where rows are locked at all."""
    found = {row.name: row.value for row in connection.execute(_READ)}
    return Epoch(int(found.get(_EPOCH, "0")), found.get(_HOLDER, ""), int(found.get(_TURN, "0")))


def take(connection: sa.Connection, holder: str, *, above: int = 0) -> Epoch:
    """The next epoch, `holder`'s from now on; higher than `above`, which somebody else may have seen."""
    was = read(connection)
    number = max(was.number, above) + 1
    write_meta(connection, _EPOCH, str(number))
    write_meta(connection, _HOLDER, holder)
    return Epoch(number, holder, was.turn)


def check(connection: sa.Connection, mine: int, turn: int) -> int:
    """The turn. Raises LedgerFenced unless `mine` is the epoch in force (0: none was taken) and the turn has come to `turn`."""
    found = read(connection)
    if found.number != mine:
        who = f"{found.holder or 'another process'} took epoch {found.number}"
        had = f"this process had epoch {mine}" if mine else "this process has taken none"
        raise LedgerFenced(f"the ledger has another keeper: {who}, {had}. Nothing was written; only the keeper may write")
    if found.turn < turn:
        raise LedgerFenced(
            f"the ledger's database has gone back, from turn {turn} to {found.turn}: it is an older copy of what this process "
            "wrote, such as a standby that lagged behind. Nothing was written; the next term finds out what is missing"
        )
    return found.turn


def turn(connection: sa.Connection) -> int:
    """As `read`, but to look only: nothing is locked."""
    return int(read_meta(connection, _TURN, "0"))


def next_turn(connection: sa.Connection, turn: int) -> int:
    write_meta(connection, _TURN, str(turn + 1))
    return turn + 1
