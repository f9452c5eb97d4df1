"""The spend ledger: who was granted what, what it cost, and what is left. READ THIS FIRST of the package.

`sync.service` and `local` hold one `Ledger` and call it from one worker thread; `cli` opens others to read. Every method is one
transaction: it has happened whole when it returns, and not at all when it raises. What decides is pure (`desk`, `lease`,
`policy`); what is stored is in `store`, `binding` and `traffic`; where, in `database`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import sqlalchemy as sa

from stepdown.budget.account import Balance, Binding
from stepdown.budget.serving import Pod
from stepdown.budget.statement import MonthBooks
from stepdown.ledger import binding, closing, epoch, errors, migrate, orders, settlement, store, terms, traffic, verify, views
from stepdown.ledger.check import check
from stepdown.ledger.database import Database, again, open_database
from stepdown.ledger.desk import Pressure
from stepdown.ledger.marks import EPOCH, Marks
from stepdown.ledger.memory import Memory
from stepdown.ledger.round import Published, Round, Tables
from stepdown.ledger.schema import REVISIONS, accepted_specs
from stepdown.ledger.traffic import RouteTotal
from stepdown.ledger.transfer import refuse_moved
from stepdown.ledger.views import InstanceView
from stepdown.model.sync import Counter, SyncAnswer, SyncRequest

_SEEN, _REVISION = "seen_s", "revision"
LOOK_S = 1.0
"""How often it is looked who has been silent for longer than its leases live."""
_NEVER = -1
"""An epoch that nobody has."""

T = TypeVar("T")


class _Undone(Exception):
    """Ends a transaction that was only to be looked at."""

    def __init__(self, done: settlement.Reconciled) -> None:
        self.done = done


class Judged(NamedTuple):
    """The answers to a batch, in its order."""

    answers: list[SyncAnswer]
    short: tuple[int, ...] = ()
    """Indices of those that wait for the witness: to be judged again when it has been raised, rather than answered."""
    marks: Mapping[str, int] = {}
    """All that the witness should hold; empty while it does."""


class Ledger:
    """An open ledger. Not for two threads at once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._names = store.Names()
        self._memory = Memory()
        self._stamp = -1
        """Of the last transaction that wrote (`Database.stamp`)."""
        self._pressure = Pressure()
        self._published = Published()
        self._epoch = self._turn = 0
        self._marks: Marks | None = None
        self._began_s = self._look_s = 0.0
        self._awaiting = False
        self._lost = False
        self.revision = 0
        self._seen_s = 0.0
        self._read(self._remember)

    @classmethod
    def open(cls, path_or_url: str | Path, *, create: bool, read_only: bool = False, beside: bool = False) -> "Ledger":
        """Opens the ledger as its keeper, or to read. Raises a LedgerError that says what to do.

        `beside`: while its keeper may be at work. Whoever means to write what a keeper writes must take the epoch.
        """
        database = open_database(path_or_url, create=create, read_only=read_only, beside=beside)
        try:
            with database.opening() as connection:
                found = migrate.revision_of(connection, database.where)
                if found != REVISIONS[-1]:
                    if read_only or beside:
                        raise errors.LedgerOld(
                            f"the ledger {database.where} has schema {found}, this build reads {REVISIONS[-1]}: "
                            "its keeper upgrades it"
                        )
                    migrate.upgrade(connection)
                if not read_only:
                    refuse_moved(connection, database.where)
            return cls(database)
        except BaseException:
            database.close()
            raise

    @property
    def where(self) -> str:
        """For messages: a file's path, or an address without a password."""
        return self._database.where

    def close(self) -> None:
        """A keeper that has granted under a witness says that this was all: the next need not doubt."""
        if self._marks is not None and self._epoch and self._marks.known.get(EPOCH, 0) >= self._epoch:
            with suppress(errors.LedgerError):
                self._write(lambda connection: terms.close(connection, self._epoch))
        self._epoch = _NEVER
        self._database.close()

    def _remember(self, connection: sa.Connection) -> None:
        """What is kept in memory of the tables: another keeper may have changed it."""
        self.revision = int(store.read_meta(connection, _REVISION, "0"))
        self._seen_s = max(self._seen_s, float(store.read_meta(connection, _SEEN, "0")), store.last_heard_s(connection))

    def take_epoch(self, holder: str) -> int:
        """Leads from now on: what an earlier keeper still tries to write raises LedgerFenced there. `holder`: for messages.

        To be called before anything is written, and before `publish`.
        """

        def take(connection: sa.Connection) -> epoch.Epoch:
            taken = epoch.take(connection, holder)
            self._remember(connection)
            return taken

        taken = self._write(take, fenced=False)
        self._names.forget()
        self._epoch = taken.number
        return taken.number

    def _read(self, work: Callable[[sa.Connection], T]) -> T:
        def attempt() -> T:
            with self._database.transaction(write=False) as connection:
                return work(connection)

        return again(attempt, self._forget)

    def _forget(self) -> None:
        """What is remembered of the tables may not be in them."""
        self._names.forget()
        self._memory.forget()

    def _write(
        self,
        work: Callable[[sa.Connection], T],
        *,
        fenced: bool = True,
        once: bool = False,
        remembers: bool = False,
        failed: Callable[[], None] | None = None,
    ) -> T:
        """A transaction that may change something; if it is `fenced`, LedgerFenced before it has, where another keeper has it.

        What it does may happen twice if an interruption leaves open whether it has happened, unless `once`. `remembers`: it
        keeps `_memory` as the tables are; else that is forgotten.
        """

        def attempt() -> T:
            with self._database.transaction() as connection:
                turn = epoch.check(connection, self._epoch, self._turn) if fenced else epoch.read(connection).turn
                if not remembers or self._database.stamp(connection, turn) != self._stamp:
                    self._memory.forget()
                done = work(connection)
                if self._database.may_go_back:
                    turn = epoch.next_turn(connection, turn)
                stamp = self._database.stamp(connection, turn)
            self._turn, self._stamp = turn, stamp
            return done

        def undone() -> None:
            self._forget()
            if failed is not None:
                failed()

        return again(attempt, undone, once=once)

    def _now(self, now_s: float) -> float:
        """Time as far as decisions go: it never runs backwards."""
        self._seen_s = max(self._seen_s, now_s)
        return self._seen_s

    # The witness ------------------------------------------------------------------------------------------------------

    def guard(self) -> None:
        """From here on there is a witness: nothing is granted before `begin`, and nothing beyond its marks."""
        self._marks = Marks()

    def begin(self, witness: Mapping[str, int], now_s: float) -> terms.Begun:
        """Judges this ledger by what the witness holds (`terms`). To be called after `take_epoch`.

        Grants begin when the witness has been raised to `needed_marks` and `set_marks` has said so.
        """
        now_s, marks = self._now(now_s), Marks()
        marks.now_s = now_s
        marks.reached(witness)
        begun, self._awaiting = self._write(
            lambda connection: (
                terms.begin(connection, self._epoch, witness, now_s),
                terms.settle(connection, hoping=True),
            )
        )
        self._epoch, self._began_s, self._lost = begun.epoch, now_s, begun.lost > 0
        for name, value in begun.marks.items():
            marks.want_value(name, value)
        self._marks = marks
        self._reopen(lost=self._lost)
        return begun

    def needed_marks(self) -> dict[str, int]:
        """All that the witness should hold; empty while it does."""
        return self._marks.raised if self._marks is not None else {}

    def set_marks(self, marks: Mapping[str, int]) -> None:
        """The witness holds at least these now."""
        if self._marks is not None:
            self._marks.reached(marks)
            self._reopen(lost=self._lost)

    @property
    def standstill(self) -> str:
        """Why nothing may be granted; empty when something may."""
        return self._marks.closed if self._marks is not None else ""

    def _reopen(self, *, lost: bool) -> None:
        assert self._marks is not None
        if lost:
            path = self._database.where
            self._marks.closed = (
                f"the ledger {path} is empty, but the witness knows of money that was granted: what was in it is lost. "
                "Bring it back from a backup; or accept that all up to the marks counts as spent, with "
                f"`stepdown ledger init --accept-loss {path}`"
            )
        elif self._marks.known.get(EPOCH, 0) < self._epoch:
            self._marks.closed = "the witness has not been told yet who grants now"
        else:
            self._marks.closed = ""

    def accept_loss(self) -> None:
        """An administrator's word on an empty ledger beside marks. Its keeper hears it with the next message."""
        self._write(terms.accept_loss, fenced=False)

    # Proxies ----------------------------------------------------------------------------------------------------------

    def sync(self, batch: Sequence[SyncRequest], now_s: float) -> list[SyncAnswer]:
        """Takes in what proxies report and grants what they ask, in order of arrival, in one transaction.

        The answers carry no config: the service adds it.
        """
        return self.judge(batch, now_s).answers

    def judge(
        self,
        batch: Sequence[SyncRequest],
        now_s: float,
        patient: Collection[int] = (),
        pods: Mapping[str, Pod] | None = None,
    ) -> Judged:
        """As `sync`, but messages whose indices are `patient` may be told to wait for the witness (`needed_marks`).

        `pods`: by instance, the pod that sent its message.
        """
        for request in batch:
            check(request)
        now_s = self._now(now_s)
        marks = self._marks
        wanted, short = (dict(marks.wanted), dict(marks.short)) if marks is not None else ({}, {})
        if marks is not None:
            marks.now_s = now_s
            if not patient:
                marks.short.clear()  # Nobody waits any more.

        def undone() -> None:
            """Nothing of it has happened, so nothing of it is wanted."""
            if marks is not None:
                marks.wanted, marks.short = dict(wanted), dict(short)

        judged, self._awaiting, self._lost = self._write(
            lambda connection: self._judge(connection, batch, now_s, patient, pods), remembers=True, failed=undone
        )
        return judged

    def _judge(
        self,
        connection: sa.Connection,
        batch: Sequence[SyncRequest],
        now_s: float,
        patient: Collection[int],
        pods: Mapping[str, Pod] | None,
    ) -> tuple[Judged, bool, bool]:
        """With whether something is awaited, and whether the ledger is lost."""
        answers: dict[int, SyncAnswer] = {}
        short: list[int] = []
        lost = self._lost and not terms.accepted(connection)
        if lost != self._lost:
            self._reopen(lost=lost)
        if now_s >= self._look_s:
            if store.mark_lost(connection, now_s, self._began_s):
                self._memory.forget()
            self._look_s = now_s + LOOK_S
        awaiting = self._awaiting
        for part in _rounds(batch):
            round_ = Round(
                Tables(connection, self._database.together, self._names, self._memory),
                self._pressure,
                self._published,
                self.revision,
                now_s,
                self._marks,
                pods,
            )
            said = round_.run([batch[index] for index in part], {batch[i].instance for i in part if i in patient})
            answers |= zip(part, said, strict=True)
            short += (index for index in part if batch[index].instance in round_.short)
            awaiting |= round_.revealed
        if awaiting:
            self._memory.forget()
            awaiting = self._settle(connection, now_s)
        in_order = [answers[index] for index in range(len(batch))]
        return Judged(in_order, tuple(short), self.needed_marks()), awaiting, lost

    def _settle(self, connection: sa.Connection, now_s: float) -> bool:
        return terms.settle(connection, hoping=now_s < self._began_s + terms.HOPE_S)

    def publish(self, fleet: str, digests: Mapping[int, str], horizon_s: float) -> None:
        """From here on, an instance of this fleet that acknowledges one of these digests obeys all that is bound now.

        To be called after `bind`, with the digest of every shard; it is not stored, so once after every start too.
        """
        self._published.add(fleet, digests, horizon_s, self.revision)

    def vacate(self, pod_uids: Collection[str]) -> None:
        """Nothing runs in these pods any more: no ceiling waits for a proxy that was in one of them and cannot be heard."""
        self._write(lambda connection: store.vacate(connection, pod_uids))

    def settle_instance(self, instance: str, consumed: Mapping[str, int] | None, now_s: float) -> None:
        """An administrator's word on a lost instance: what it consumed of each account, at least what it reported (None: that).

        It is closed for good; should it come back, it is told to take a new id.
        """
        now_s = self._now(now_s)

        def settle(connection: sa.Connection) -> bool:
            store.mark_lost(connection, now_s, self._began_s)
            closing.settle(connection, instance, consumed)
            return self._marks is not None and self._settle(connection, now_s)

        self._awaiting = self._write(settle, once=True)

    def reconcile(self, said: settlement.Statement, now_s: float, *, dry_run: bool = False) -> settlement.Reconciled:
        """Settles by an upstream's invoice what was unreconciled, while the keeper may be at work. Raises LedgerRefused.

        No grant is made until it is over, for it has the lock of the epoch. `dry_run`: says what would come of it, and nothing
        has happened.
        """

        def settle(connection: sa.Connection) -> settlement.Reconciled:
            done = settlement.reconcile(connection, said, max(self._seen_s, now_s))
            if dry_run:
                raise _Undone(done)
            return done

        try:
            return self._write(settle, fenced=False, once=True)
        except _Undone as undone:
            return undone.done

    # The plan ---------------------------------------------------------------------------------------------------------

    def bind(self, bindings: Sequence[Binding], now_s: float) -> None:
        """Makes accounts, limits and bound routes what the plan says: all of them, every time.

        What is missing is bound no more, and keeps what it has spent.
        """
        now_s = self._now(now_s)

        def bind(connection: sa.Connection) -> int:
            """The revision in force; read anew, for an attempt before may have happened after all."""
            revision = int(store.read_meta(connection, _REVISION, "0"))
            store.write_meta(connection, _SEEN, repr(now_s))
            if binding.bind(connection, self._names, bindings, revision + 1, now_s):
                revision += 1
                store.write_meta(connection, _REVISION, str(revision))
            return revision

        self.revision = self._write(bind)

    def accepted(self) -> dict[str, tuple[int, str]]:
        """The last accepted spec of each object: UID → (generation, spec as JSON)."""
        return self._read(
            lambda connection: {row.uid: (row.generation, row.spec) for row in connection.execute(sa.select(accepted_specs))}
        )

    def accept(self, specs: Mapping[str, tuple[int, str]], gone: Sequence[str] = ()) -> None:
        """Remembers accepted specs, and forgets those of objects that are gone."""
        self._write(lambda connection: views.accept(connection, specs, gone))

    def orders(self) -> dict[str, str]:
        """By route: the purchase order of today."""
        return {route: each[-1][1] for route, each in self._read(orders.booked).items()}

    def book(self, references: Mapping[str, str], day: int) -> None:
        """From that UTC day on these routes' spend is booked under these purchase orders (empty: none)."""
        self._write(lambda connection: orders.book(connection, self._names, references, day))

    # Views ------------------------------------------------------------------------------------------------------------

    def balances(self, now_s: float, *, ended: bool = False) -> dict[str, Balance]:
        """Where the money of each account is; of those whose period has ended only with `ended`."""
        now_s = max(self._seen_s, now_s)
        return self._read(lambda connection: views.balances(connection, now_s, ended=ended))

    def route_totals(self, since_day: int, until_day: int) -> dict[str, RouteTotal]:
        """By route, over days since 1970-01-01 UTC, both included."""
        return self._read(lambda connection: traffic.route_totals(connection, self._names, since_day, until_day))

    def counters(self, since_day: int, until_day: int, *, by_day: bool = False) -> list[Counter]:
        """By route, model and class (and day), over all instances; both days included."""
        return self._read(lambda connection: traffic.totals(connection, self._names, since_day, until_day, by_day))

    def books(self, since_day: int, until_day: int) -> MonthBooks:
        """What a statement is made of; both days included."""

        def read(connection: sa.Connection) -> MonthBooks:
            counters = traffic.totals(connection, self._names, since_day, until_day, by_day=True)
            accounts = views.account_books(connection, since_day, until_day, self._seen_s)
            return MonthBooks(tuple(counters), orders.booked(connection), accounts)

        return self._read(read)

    def instances(self, *, closed: bool = False) -> list[InstanceView]:
        """Every proxy process that is open or lost, and with `closed` the tombstones, with its leases."""
        return self._read(lambda connection: views.instances(connection, closed=closed))

    def verify(self) -> list[str]:
        """Differences between the ledger's own sums, a sentence each; none when all is well."""

        def read(connection: sa.Connection) -> list[str]:
            mine = self._database.stamp(connection, epoch.turn(connection)) == self._stamp
            return [*verify.everything(connection), *(self._memory.differences(connection) if mine else ())]

        return self._read(read)


def _rounds(batch: Sequence[SyncRequest]) -> Iterator[list[int]]:
    """The batch in order, in parts in which no instance speaks twice: its later message is judged after its earlier one."""
    part: list[int] = []
    speakers: set[str] = set()
    for index, request in enumerate(batch):
        if request.instance in speakers:
            yield part
            part, speakers = [], set()
        part.append(index)
        speakers.add(request.instance)
    if part:
        yield part
