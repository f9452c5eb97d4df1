"""The spend ledger: who was granted what, what it cost, and what is left. READ THIS FIRST of the package.

`sync.service` and `local` hold one `Ledger` and call it from one worker thread; `cli` opens others to read. Every method is one
transaction: it has happened whole when it returns, and not at all when it raises. What decides is pure (`desk`, `lease`,
`policy`); what is stored is in `store`, `binding` and `traffic`; SQLite's ways are in `sqlite`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from stepdown.budget.account import Balance, Binding
from stepdown.ledger import binding, closing, epoch, errors, migrate, store, terms, traffic, verify, views
from stepdown.ledger.check import check
from stepdown.ledger.desk import Pressure
from stepdown.ledger.marks import EPOCH, Marks
from stepdown.ledger.round import Published, Round
from stepdown.ledger.schema import REVISIONS, accepted_specs
from stepdown.ledger.sqlite import Database, open_database
from stepdown.ledger.traffic import RouteTotal
from stepdown.ledger.views import InstanceView
from stepdown.model.sync import Counter, SyncAnswer, SyncRequest

_SEEN, _REVISION = "seen_s", "revision"
_NEVER = -1
"""An epoch that nobody has."""


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
        self._pressure = Pressure()
        self._published = Published()
        self._epoch = 0
        self._marks: Marks | None = None
        self._began_s = 0.0
        self._awaiting = False
        self._lost = False
        self.revision = 0
        self._seen_s = 0.0
        with self._transaction() as connection:
            self._remember(connection)

    @classmethod
    def open(cls, path_or_url: str | Path, *, create: bool, read_only: bool = False, beside: bool = False) -> "Ledger":
        """Opens the ledger as its keeper, or to read. Raises a LedgerError that says what to do.

        `beside`: while its keeper may be at work. Whoever means to write what a keeper writes must take the epoch.
        """
        database = open_database(_path(path_or_url), create=create, read_only=read_only, beside=beside)
        try:
            with database.transaction() as connection:
                found = migrate.revision_of(connection, database.path)
                if found != REVISIONS[-1]:
                    if read_only or beside:
                        raise errors.LedgerOld(
                            f"the ledger {database.path} has schema {found}, this build reads {REVISIONS[-1]}: "
                            "its keeper upgrades it"
                        )
                    migrate.upgrade(connection)
            return cls(database)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """A keeper that has granted under a witness says that this was all: the next need not doubt."""
        if self._marks is not None and self._epoch and self._marks.known.get(EPOCH, 0) >= self._epoch:
            with suppress(errors.LedgerError), self._writing() as connection:
                terms.close(connection, self._epoch)
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
        with self._transaction() as connection:
            number = epoch.take(connection, holder)
            self._remember(connection)
        self._names.forget()
        self._epoch = number
        return number

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction that may change something, or LedgerFenced before it has."""
        with self._transaction() as connection:
            epoch.check(connection, self._epoch)
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._database.transaction() as connection:
                yield connection
        except BaseException:
            self._names.forget()
            raise

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
        marks.reached(witness)
        with self._writing() as connection:
            begun = terms.begin(connection, self._epoch, witness, now_s)
            self._awaiting = terms.settle(connection, hoping=True)
        self._epoch, self._began_s, self._lost = begun.epoch, now_s, begun.lost > 0
        for name, value in begun.marks.items():
            marks.want_value(name, value)
        self._marks = marks
        self._reopen()
        return begun

    def needed_marks(self) -> dict[str, int]:
        """All that the witness should hold; empty while it does."""
        return self._marks.raised if self._marks is not None else {}

    def set_marks(self, marks: Mapping[str, int]) -> None:
        """The witness holds at least these now."""
        if self._marks is not None:
            self._marks.reached(marks)
            self._reopen()

    @property
    def standstill(self) -> str:
        """Why nothing may be granted; empty when something may."""
        return self._marks.closed if self._marks is not None else ""

    def _reopen(self) -> None:
        assert self._marks is not None
        if self._lost:
            path = self._database.path
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
        with self._transaction() as connection:
            terms.accept_loss(connection)

    # Proxies ----------------------------------------------------------------------------------------------------------

    def sync(self, batch: Sequence[SyncRequest], now_s: float) -> list[SyncAnswer]:
        """Takes in what proxies report and grants what they ask, in order of arrival, in one transaction.

        The answers carry no config: the service adds it.
        """
        return self.judge(batch, now_s).answers

    def judge(self, batch: Sequence[SyncRequest], now_s: float, patient: Collection[int] = ()) -> Judged:
        """As `sync`, but messages whose indices are `patient` may be told to wait for the witness (`needed_marks`)."""
        for request in batch:
            check(request)
        now_s = self._now(now_s)
        wanted = dict(self._marks.wanted) if self._marks is not None else {}
        try:
            return self._judge(batch, now_s, patient)
        except BaseException:
            if self._marks is not None:  # Nothing of it has happened, so nothing of it is wanted.
                self._marks.wanted = wanted
            raise

    def _judge(self, batch: Sequence[SyncRequest], now_s: float, patient: Collection[int]) -> Judged:
        answers: dict[int, SyncAnswer] = {}
        short: list[int] = []
        with self._writing() as connection:
            if self._lost and terms.accepted(connection):
                self._lost = False
                self._reopen()
            store.mark_lost(connection, now_s, self._began_s)
            revealed = self._awaiting
            for part in _rounds(batch):
                round_ = Round(connection, self._names, self._pressure, self._published, self.revision, now_s, self._marks)
                said = round_.run([batch[index] for index in part], {batch[i].instance for i in part if i in patient})
                answers |= zip(part, said, strict=True)
                short += (index for index in part if batch[index].instance in round_.short)
                revealed |= round_.revealed
            if revealed:
                self._awaiting = self._settle(connection, now_s)
        return Judged([answers[index] for index in range(len(batch))], tuple(short), self.needed_marks())

    def _settle(self, connection: sa.Connection, now_s: float) -> bool:
        return terms.settle(connection, hoping=now_s < self._began_s + terms.HOPE_S)

    def publish(self, fleet: str, digests: Mapping[int, str], horizon_s: float) -> None:
        """From here on, an instance of this fleet that acknowledges one of these digests obeys all that is bound now.

        To be called after `bind`, with the digest of every shard; it is not stored, so once after every start too.
        """
        self._published.add(fleet, digests, horizon_s, self.revision)

    def settle_instance(self, instance: str, consumed: Mapping[str, int] | None, now_s: float) -> None:
        """An administrator's word on a lost instance: what it consumed of each account, at least what it reported (None: that).

        It is closed for good; should it come back, it is told to take a new id.
        """
        now_s = self._now(now_s)
        with self._writing() as connection:
            store.mark_lost(connection, now_s, self._began_s)
            closing.settle(connection, instance, consumed)
            if self._marks is not None:
                self._awaiting = self._settle(connection, now_s)

    # The plan ---------------------------------------------------------------------------------------------------------

    def bind(self, bindings: Sequence[Binding], now_s: float) -> None:
        """Makes accounts, limits and bound routes what the plan says: all of them, every time.

        What is missing is bound no more, and keeps what it has spent.
        """
        now_s = self._now(now_s)
        with self._writing() as connection:
            revision = self.revision + 1
            store.write_meta(connection, _SEEN, repr(now_s))
            if binding.bind(connection, self._names, bindings, revision, now_s):
                store.write_meta(connection, _REVISION, str(revision))
            else:
                revision = self.revision
        self.revision = revision

    def accepted(self) -> dict[str, tuple[int, str]]:
        """The last accepted spec of each object: UID → (generation, spec as JSON)."""
        with self._transaction() as connection:
            return {row.uid: (row.generation, row.spec) for row in connection.execute(sa.select(accepted_specs))}

    def accept(self, specs: Mapping[str, tuple[int, str]], gone: Sequence[str] = ()) -> None:
        """Remembers accepted specs, and forgets those of objects that are gone."""
        with self._writing() as connection:
            views.accept(connection, specs, gone)

    # Views ------------------------------------------------------------------------------------------------------------

    def balances(self, now_s: float, *, ended: bool = False) -> dict[str, Balance]:
        """Where the money of each account is; of those whose period has ended only with `ended`."""
        now_s = max(self._seen_s, now_s)
        with self._transaction() as connection:
            return views.balances(connection, now_s, ended=ended)

    def route_totals(self, since_day: int, until_day: int) -> dict[str, RouteTotal]:
        """By route, over days since 1970-01-01 UTC, both included."""
        with self._transaction() as connection:
            return traffic.route_totals(connection, self._names, since_day, until_day)

    def counters(self, since_day: int, until_day: int, *, by_day: bool = False) -> list[Counter]:
        """By route, model and class (and day), over all instances; both days included."""
        with self._transaction() as connection:
            return traffic.totals(connection, self._names, since_day, until_day, by_day)

    def instances(self, *, closed: bool = False) -> list[InstanceView]:
        """Every proxy process that is open or lost, and with `closed` the tombstones, with its leases."""
        with self._transaction() as connection:
            return views.instances(connection, closed=closed)

    def verify(self) -> list[str]:
        """Differences between the ledger's own sums, a sentence each; none when all is well."""
        with self._transaction() as connection:
            return verify.differences(connection)


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


def _path(path_or_url: str | Path) -> Path | None:
    if isinstance(path_or_url, Path):
        return path_or_url
    if path_or_url in (":memory:", "sqlite://"):
        return None
    scheme, separator, rest = path_or_url.partition("://")
    if not separator:
        return Path(path_or_url)
    if scheme != "sqlite":
        raise errors.LedgerRefused(f"a ledger at {scheme}:// is not supported: name a file, or sqlite:///FILE")
    return Path(rest.removeprefix("/") if not rest.startswith("//") else rest[1:])
