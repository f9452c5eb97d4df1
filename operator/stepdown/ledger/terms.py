"""The begin of a term: can this ledger be an older copy of itself? And if it can, what counts as spent until that is known.

A keeper that begins has a ledger and the witness's marks (`marks`). Three things are known of what was granted before:

* The last thing that a keeper writes is the number of its epoch (`close`), and the first thing that it grants comes after the
  witness holds that number. So if the ledger's closing number is the witness's, no later term granted anything, and the
  ledger is whole: *proven*. That is every restart but those after a kill, a crash or the restore of a backup.
* Whatever was granted of an account, the sum of all that is committed never passed its mark. So when nothing is proven, what
  the mark says beyond what the ledger knows is `awaited`: it counts as committed.
* Whoever was granted anything has a number, `born`, that the witness held before the grant. So if the ledger has given out as
  many numbers as the witness holds, it knows everybody who can hold or have spent money, and those that were given up as lost
  it knows in full (one that comes back takes a new number before it is granted more).

`awaited` is paid off by what is heard: when an instance that has been silent since the begin reports, what it says beyond what
the ledger knew is moved from `awaited` to where it belongs, and what it holds less than the ledger thought is added: somebody
else may have been granted it since. All that is committed stays the same sum, so it stays above the truth. Once all that were
open have said everything (`SyncRequest.whole`), nothing unknown is left, and the rest of `awaited` is gone: within seconds.
Nothing is taken in of a message that is not whole: between a copy and its return a budget may have been unbound and bound
again, and what an instance spent meanwhile is what its counters have grown by beyond its leases (`binding.charge_between`),
which only the two as of one moment can say.

Where that cannot be, the rest is `unaccounted` and shows as unreconciled: while an instance that was open is lost and not
settled; and where the ledger lacks numbers (`strays`): those who bear them come forward by reporting grants that nobody
here has made, or they are gone and nobody will ever say what they spent. Settling those that are lost ends it in the first
case; in the second it ends with the period.
"""

from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa

from stepdown.ledger import epoch, store
from stepdown.ledger.errors import LedgerRefused
from stepdown.ledger.lease import Account
from stepdown.ledger.marks import BORN, EPOCH, may_run
from stepdown.ledger.schema import accounts, instances, leases

SILENT, LONG_SILENT, VAGUE = 1, 2, 4
"""Flags of `instances.unheard`: it has not said everything since this term began unproven; since an earlier one did; or it has
spoken, but in a protocol that cannot say whether that was everything."""

UNHEARD = SILENT | LONG_SILENT

AGAIN = -1
"""`instances.born` of one that is known to have had a number, and needs a new one before it is granted more."""

TAIL_S = 86_400
"""How long after its end an account may still be asked for, by a request that was admitted before."""

HOPE_S = 60.0
"""How long after its begin a term waits for who is silent, before it says `unaccounted`."""

_CLOSED, _BORN, _STRAYS, _ASTRAY, _LOSS, _DOUBTED = "closed", "born", "strays", "astray", "loss", "doubted_s"


class Begun(NamedTuple):
    """How a term begins."""

    epoch: int
    marks: dict[str, int]
    """What the witness must hold before anything is granted."""
    proven: bool
    accounts: int
    """How many await something."""
    awaited_nusd: int
    """What they await together."""
    lost: int
    """How many accounts have marks while the ledger is empty and nobody has accepted that. Then nothing is granted."""


def begin(connection: sa.Connection, mine: int, witness: Mapping[str, int], now_s: float) -> Begun:
    """Judges the ledger by the witness; in the transaction that has checked the epoch.

    Who was lost is as the ledger says: in a copy of yesterday all have been silent for long, and may have been heard since.
    """
    told = witness.get(EPOCH, 0)
    number = mine if mine > told else epoch.take(connection, epoch.read(connection).holder, above=told).number
    lost = _lost(connection, witness, now_s)
    proven = told <= _number(connection, _CLOSED) and (told > 0 or not any(witness.values()))
    gap = witness.get(BORN, 0) - _number(connection, _BORN)
    if not proven:
        _doubt(connection, max(0, gap))
        store.write_meta(connection, _DOUBTED, repr(now_s))
        _await(connection, witness, now_s)
    if gap > 0:
        store.write_meta(connection, _BORN, str(witness[BORN]))
    else:
        _number_holders(connection)
    marks = {EPOCH: number, BORN: _number(connection, _BORN)}
    running = _running(connection, now_s).values()
    for account in running:
        if account.hard and account.committed > witness.get(account.name, 0):
            marks[account.name] = account.committed
    awaited = [account.awaited for account in running if account.awaited]
    return Begun(number, marks, proven, len(awaited), sum(awaited), lost)


def close(connection: sa.Connection, mine: int) -> None:
    """The last word of a term in which something may have been granted."""
    store.write_meta(connection, _CLOSED, str(mine))


def settle(connection: sa.Connection, *, hoping: bool) -> bool:
    """Ends what waiting there is to end. True: something is still awaited, ask again after the next message.

    `hoping`: it is early in the term, and those who have not spoken may yet.
    """
    flags = [(row.state, row.unheard) for row in connection.execute(_FLAGGED)]
    silent = {state for state, flag in flags if flag & SILENT}
    astray = bool(_number(connection, _ASTRAY))
    if (hoping and (silent or astray)) or "open" in silent:
        return True
    if silent or astray:
        _give_up(connection)
    else:
        connection.execute(accounts.update().where(accounts.c.awaited > 0).values(awaited=0))
    if not flags and not _number(connection, _STRAYS):
        connection.execute(accounts.update().where(accounts.c.unaccounted > 0).values(unaccounted=0))
    return False


def next_born(connection: sa.Connection) -> int:
    """A number for an instance that is to be granted something for the first time."""
    number = _number(connection, _BORN) + 1
    store.write_meta(connection, _BORN, str(number))
    return number


def come_forward(connection: sa.Connection) -> bool:
    """Somebody has grants that nobody here has made. True: it is one of the strays, and there is one less."""
    strays = _number(connection, _STRAYS)
    if strays:
        store.write_meta(connection, _STRAYS, str(strays - 1))
    return strays > 0


def never_sure(connection: sa.Connection) -> None:
    """Somebody speaks a protocol that cannot say whether this was everything: the same as somebody who is never heard."""
    store.write_meta(connection, _STRAYS, str(_number(connection, _STRAYS) + 1))
    store.write_meta(connection, _ASTRAY, "1")


def doubted_s(connection: sa.Connection) -> float:
    """When a term last began unproven; infinite where that is not known, and never where it never did."""
    return float(store.read_meta(connection, _DOUBTED, "inf" if _ever_doubted(connection) else "-inf"))


def accepted(connection: sa.Connection) -> bool:
    return store.read_meta(connection, _LOSS, "") == "accepted"


def accept_loss(connection: sa.Connection) -> None:
    """An administrator's word: what was in the ledger before this one is gone, and the marks count as spent."""
    if store.read_meta(connection, _LOSS, "") != "found" and _knows_anybody(connection):
        raise LedgerRefused("the ledger is not empty: it knows what was granted, and there is no loss to accept")
    store.write_meta(connection, _LOSS, "accepted")


# Parts ----------------------------------------------------------------------------------------------------------------

_BOTH = accounts.c.unaccounted + accounts.c.awaited


_ALIVE = instances.c.fleet != "", instances.c.state != "closed"
"""Not nobody, nor an invoice's (`settlement`), of which there is nothing to hear."""
_FLAGGED = sa.select(instances.c.state, instances.c.unheard).distinct().where(*_ALIVE, instances.c.unheard > 0)


def _give_up(connection: sa.Connection) -> None:
    """What is awaited will not come by itself, or not soon."""
    connection.execute(accounts.update().where(accounts.c.awaited > 0).values(unaccounted=_BOTH, awaited=0))
    connection.execute(instances.update().where(*_ALIVE, instances.c.unheard > 0).values(unheard=LONG_SILENT))
    store.write_meta(connection, _ASTRAY, "0")


def _number(connection: sa.Connection, name: str) -> int:
    return int(store.read_meta(connection, name, "0"))


def _ever_doubted(connection: sa.Connection) -> bool:
    """By what it leaves behind."""
    unaccounted = sa.select(accounts.c.id).where(accounts.c.unaccounted > 0).limit(1)
    unheard = sa.select(instances.c.id).where(*_ALIVE, instances.c.unheard > 0).limit(1)
    return any(connection.execute(each).first() is not None for each in (unaccounted, unheard))


def _knows_anybody(connection: sa.Connection) -> bool:
    return connection.execute(sa.select(instances.c.id).where(instances.c.id != 0).limit(1)).first() is not None


def _lost(connection: sa.Connection, witness: Mapping[str, int], now_s: float) -> int:
    """How many running accounts the witness knows of whose ledger is gone: this one is empty, and was from the start."""
    running = sum(value > 0 and may_run(name, now_s) for name, value in witness.items())
    state = store.read_meta(connection, _LOSS, "")
    if state == "accepted" or not running:
        return 0
    if state != "found":
        if _knows_anybody(connection):
            return 0
        store.write_meta(connection, _LOSS, "found")
    return running


def _doubt(connection: sa.Connection, gap: int) -> None:
    """From here on what is known of everybody may be old, and `gap` of them not known. What an earlier term awaited stays."""
    _give_up(connection)
    doubted = _ALIVE if gap else (*_ALIVE, instances.c.state == "open")
    connection.execute(instances.update().where(*doubted).values(unheard=instances.c.unheard + SILENT))
    if gap:
        store.write_meta(connection, _STRAYS, str(_number(connection, _STRAYS) + gap))
    store.write_meta(connection, _ASTRAY, str(int(gap > 0)))


def _await(connection: sa.Connection, witness: Mapping[str, int], now_s: float) -> None:
    """Everything up to the mark is committed."""
    running = _running(connection, now_s)
    known = {account.name for account in running.values()}
    for name in witness:
        if name not in known and may_run(name, now_s) and not _ended(connection, name):
            account = store.create_stub(connection, name)
            running[account.id] = account
    for account in running.values():
        account.wait_for(witness.get(account.name, 0) - account.committed)
    store.save_accounts(connection, running.values())


def _running(connection: sa.Connection, now_s: float) -> dict[int, Account]:
    found = store.load_accounts(connection, accounts.c.end_s > now_s - TAIL_S)
    store.load_leases(connection, found)
    return found


def _ended(connection: sa.Connection, name: str) -> bool:
    """Known, and not among those that run."""
    return connection.execute(sa.select(accounts.c.id).where(accounts.c.name == name)).first() is not None


def _number_holders(connection: sa.Connection) -> None:
    """Those that were granted something before there was a witness are born now."""
    holders = sa.select(leases.c.instance).where(leases.c.granted > 0)
    nameless = sa.select(instances.c.id).where(
        instances.c.born == 0, instances.c.id.in_(holders), instances.c.state != "closed"
    )
    for number in connection.execute(nameless).scalars().all():
        connection.execute(instances.update().where(instances.c.id == number).values(born=next_born(connection)))
