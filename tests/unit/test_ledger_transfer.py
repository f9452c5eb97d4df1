"""A ledger from one database into the other. If these fail, a move loses what was spent, or leaves two that both grant."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from stepdown.budget.account import Binding
from stepdown.ledger import Ledger, errors, migrate, schema, transfer
from stepdown.ledger.database import where_of
from stepdown.model.sync import Ask, Counter, LeaseReport, SyncAnswer, SyncRequest
from tests.postgres import Server

ACCOUNT = "shop/team@0"
BINDING = Binding("shop/team", 0, 10**9, 10_000, True, frozenset({"shop/chat"}))

Place = str | Path


def said(instance: str, seq: int, ask: int = 0, granted: int = 0, consumed: int = 0, *, whole: bool = True) -> SyncRequest:
    report = LeaseReport(account=ACCOUNT, granted=granted, returned=0, consumed=consumed, estimated=0, reserved=0, want=0)
    counter = Counter(route="shop/chat", model="m", request_class="default", day=1, requests=seq, cost_nusd=consumed)
    asks = (Ask(id=seq, rungs=({ACCOUNT: ask},)),) if ask else ()
    return SyncRequest(
        instance=instance, fleet="shop/default", seq=seq, asks=asks, leases=(report,), counters=(counter,), whole=whole
    )


class Kept:
    """A keeper's term under a witness, as `sync.service` does it."""

    def __init__(self, place: Place, witness: dict[str, int]) -> None:
        self.ledger, self._witness = Ledger.open(place, create=True), witness
        self.ledger.take_epoch("stepdown-0")
        self.ledger.guard()
        self.begun = self.ledger.begin(witness, 100.0)
        self._raise()
        self.ledger.bind([BINDING], 100.0)

    def _raise(self) -> None:
        self._witness.update(self.ledger.needed_marks())
        self.ledger.set_marks(self._witness)

    def say(self, message: SyncRequest) -> SyncAnswer:
        while (judged := self.ledger.judge([message], 100.0, [0])).short:
            self._raise()
        self._raise()
        return judged.answers[0]

    @property
    def committed(self) -> int:
        assert self.ledger.verify() == []
        return self.ledger.balances(100.0)[ACCOUNT].committed_nusd

    def killed(self) -> None:
        self.ledger._database.close()


@pytest.fixture(params=["SQLite to PostgreSQL", "PostgreSQL to SQLite", "SQLite to SQLite"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Place, Place]:
    """From where, and to where."""
    files: tuple[Place, Place] = (tmp_path / "one.db", tmp_path / "other.db")
    if "PostgreSQL" not in request.param:
        return files
    server: Server = request.getfixturevalue("postgres")
    return (files[0], server.database()) if request.param.endswith("PostgreSQL") else (server.database(), files[1])


def content(place: Place) -> tuple[object, ...]:
    """All that anybody can ask of a ledger."""
    ledger = Ledger.open(place, create=False, read_only=True)
    try:
        instances = sorted(ledger.instances(closed=True), key=lambda each: each.name)
        counters = sorted(map(repr, ledger.counters(0, 10_000, by_day=True)))
        return ledger.balances(0.0, ended=True), instances, counters, ledger.accepted(), ledger.verify()
    finally:
        ledger.close()


def filled(place: Place, witness: dict[str, int] | None = None) -> Kept:
    kept = Kept(place, {} if witness is None else witness)
    assert kept.say(said("a", 1, 4_000)).asks[0].rung == 0
    assert kept.say(said("b", 1, 2_000)).asks[0].rung == 0
    kept.say(said("a", 2, granted=4_000, consumed=1_000))
    kept.ledger.accept({"uid-1": (1, '{"a": "ä\U0001f600"}')})
    return kept


# A move ---------------------------------------------------------------------------------------------------------------


def test_everything_arrives_and_who_kept_it_keeps_it_no_more(ends: tuple[Place, Place]) -> None:
    """Two that both grant would grant everything twice; and the new one must number on where the old one stopped."""
    source, target = ends
    kept = filled(source)
    before = content(source)
    moved = transfer.move(source, target)
    assert content(target) == before
    assert (moved.accounts, moved.epoch) == (1, 3)
    with pytest.raises(errors.LedgerFenced, match=r"stepdown ledger import., which moved the ledger to"):
        kept.say(said("b", 2, 100, granted=2_000))
    kept.killed()
    with pytest.raises(errors.LedgerMoved, match=r"was moved to .* what was spent since is known there only"):
        Ledger.open(source, create=True)
    ledger = Ledger.open(target, create=False)
    ledger.take_epoch("stepdown-1")
    answer = ledger.sync([said("c", 1, 4_000)], 100.0)[0]
    assert (answer.asks[0].rung, ledger.balances(100.0)[ACCOUNT].committed_nusd) == (0, 10_000)
    ledger.bind([BINDING, Binding("shop/other", 0, 10**9, 5, True, frozenset({"shop/new"}))], 100.0)
    assert ledger.verify() == []
    ledger.close()


@pytest.mark.parametrize("in_order", [True, False])
def test_proxies_that_hold_leases_go_on_across_the_move(ends: tuple[Place, Place], in_order: bool) -> None:
    """Nothing over: what they hold stays committed. Nothing lost: once they have spoken, all that is left can be had."""
    source, target = ends
    witness: dict[str, int] = {}
    kept = filled(source, witness)
    if in_order:
        kept.ledger.close()
    transfer.move(source, target)
    if not in_order:
        kept.killed()
    then = Kept(target, witness)
    assert then.begun.proven is in_order
    assert then.committed >= 6_000
    assert then.say(said("c", 1, 4_001)).asks[0].rung == -1
    then.say(said("a", 3, granted=4_000, consumed=1_500))
    then.say(said("b", 2, granted=2_000, consumed=2_000))
    assert then.committed == 6_000
    assert then.say(said("c", 2, 4_000)).asks[0].rung == 0
    assert then.committed == 10_000
    then.ledger.close()


def test_an_export_of_a_ledger_that_went_on_grants_nothing_twice(tmp_path: Path, postgres: Server) -> None:
    """The way by a file, with the keeper at work: what it granted after the export is known to the witness, and held."""
    witness: dict[str, int] = {}
    kept = filled(tmp_path / "ledger.db", witness)
    transfer.export(tmp_path / "ledger.db", tmp_path / "copy")
    assert kept.say(said("b", 2, 3_000, granted=2_000)).asks[0].rung == 0
    kept.killed()
    url = postgres.database()
    transfer.move(tmp_path / "copy", url)
    then = Kept(url, witness)
    assert not then.begun.proven
    assert (then.committed, then.say(said("c", 1, 2_901)).asks[0].rung) == (7_100, -1)
    then.say(said("b", 3, granted=3_000, consumed=3_000))
    then.say(said("a", 3, granted=4_000, consumed=1_000))
    assert then.committed == 7_000
    then.ledger.close()


def test_whoever_begins_on_the_old_one_all_the_same_grants_nothing_twice(tmp_path: Path, postgres: Server) -> None:
    """A rollback of the chart after a move by a file: the old volume is still there, and its keeper knows nothing of it."""
    witness: dict[str, int] = {}
    kept = filled(tmp_path / "ledger.db", witness)
    kept.ledger.close()
    transfer.export(tmp_path / "ledger.db", tmp_path / "copy")
    url = postgres.database()
    transfer.move(tmp_path / "copy", url)
    then = Kept(url, witness)
    assert then.say(said("c", 1, 4_000)).asks[0].rung == 0
    then.ledger.close()
    back = Kept(tmp_path / "ledger.db", witness)
    assert (back.begun.proven, back.committed) == (False, 10_000)
    assert back.say(said("d", 1, 1)).asks[0].rung == -1
    back.ledger.close()


def test_a_ledger_that_was_moved_is_not_moved_elsewhere(ends: tuple[Place, Place], tmp_path: Path) -> None:
    """By then it is an older copy: what was spent since would be forgotten, and two would grant."""
    source, target = ends
    filled(source).ledger.close()
    transfer.move(source, target)
    with pytest.raises(errors.LedgerMoved, match="was moved to"):
        transfer.move(source, tmp_path / "third.db")
    assert not (tmp_path / "third.db").exists()


def test_an_import_that_was_killed_is_begun_again(ends: tuple[Place, Place]) -> None:
    """Between the source's end and the target's begin nobody keeps the money: who says it again must not be stuck."""
    source, target = ends
    filled(source).ledger.close()
    before = content(source)
    Ledger.open(target, create=True).close()
    transfer._take_over(source, where_of(target))
    transfer.move(source, target)
    assert content(target) == before


def test_a_place_is_named_the_same_before_it_is_opened(ends: tuple[Place, Place], tmp_path: Path) -> None:
    """An import that was broken off would be taken for one into somewhere else, and the money would be nobody's."""
    for place in (*ends, f"sqlite:///{tmp_path}/by-url.db"):
        opened = Ledger.open(place, create=True)
        assert where_of(place) == opened.where
        opened.close()


# An export ------------------------------------------------------------------------------------------------------------


def test_an_export_is_a_ledger_that_every_command_reads(ends: tuple[Place, Place], tmp_path: Path) -> None:
    """A backup that nobody can look into is trusted until it is needed."""
    source, target = ends
    kept = filled(source)
    made = transfer.export(source, tmp_path / "copy")
    assert content(tmp_path / "copy") == content(source)
    assert kept.say(said("b", 2, 100, granted=2_000)).asks[0].rung == 0, "and its keeper went on"
    kept.killed()
    assert transfer.move(tmp_path / "copy", target).digest == made.digest
    assert content(target) == content(tmp_path / "copy")
    transfer.move(tmp_path / "copy", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("copy")) == ["copy"], "and one file"


def test_one_that_was_used_is_a_ledger_like_any_other(tmp_path: Path) -> None:
    """`stepdown run --ledger COPY` is a way back: what was spent with it must move on as well."""
    filled(tmp_path / "ledger.db").ledger.close()
    transfer.export(tmp_path / "ledger.db", tmp_path / "copy")
    kept = Kept(tmp_path / "copy", {})
    kept.say(said("c", 1, 3_000))
    kept.ledger.close()
    transfer.move(tmp_path / "copy", tmp_path / "new.db")
    assert content(tmp_path / "new.db") == content(tmp_path / "copy")
    with pytest.raises(errors.LedgerMoved):
        Ledger.open(tmp_path / "copy", create=False)


# What is refused ------------------------------------------------------------------------------------------------------


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5_000])


def _foreign(path: Path) -> None:
    path.write_text("route,usd\nchat,1\n" * 20)


def _newer(path: Path) -> None:
    _run(path, "UPDATE alembic_version SET version_num = '9999'", "UPDATE meta SET value = '9998' WHERE name = 'oldest'")


def _only_adds(path: Path) -> None:
    """One that this build could work on, but would copy without what it adds."""
    _run(path, "UPDATE alembic_version SET version_num = '9999'")


def _changed(path: Path) -> None:
    _run(path, "UPDATE accounts SET limit_nusd = 99999")


def _does_not_add_up(path: Path) -> None:
    _run(path, "UPDATE accounts SET opening = 7")


def _run(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (_truncated, errors.LedgerCorrupt, "is damaged"),
        (_foreign, errors.LedgerForeign, "is not a ledger"),
        (_newer, errors.LedgerNewer, "Run the newer Stepdown"),
        (_only_adds, errors.LedgerNewer, "use the build that wrote it"),
        (_changed, errors.LedgerCorrupt, "a row was changed, or the file was damaged on its way"),
        (_does_not_add_up, errors.LedgerCorrupt, "does not add up, so it is not copied: account shop/team@0 opens with 7"),
    ],
)
def test_a_file_that_is_not_what_was_exported_changes_nothing(
    tmp_path: Path, postgres: Server, spoil: Callable[[Path], None], error: type[Exception], says: str
) -> None:
    """Half a ledger is money that was spent and is forgotten."""
    filled(tmp_path / "ledger.db").ledger.close()
    transfer.export(tmp_path / "ledger.db", tmp_path / "copy")
    spoil(tmp_path / "copy")
    for target in (postgres.database(), tmp_path / "new.db"):
        with pytest.raises(error, match=says):
            transfer.move(tmp_path / "copy", target)
        with pytest.raises(errors.LedgerMissing):
            Ledger.open(target, create=False, read_only=True)


def test_a_page_that_is_damaged_is_the_source_s(tmp_path: Path) -> None:
    """Whoever reads that the copy is damaged looks for another disk, and has no backup."""
    filled(tmp_path / "ledger.db").ledger.close()
    whole = (tmp_path / "ledger.db").read_bytes()
    source, refused = tmp_path / "spoilt.db", 0
    for page in range(1, len(whole) // 4096):
        source.write_bytes(whole[: page * 4096] + b"\xff" * 32 + whole[page * 4096 + 32 :])
        for into in (transfer.export, transfer.move):
            try:
                into(source, tmp_path / "new.db")
            except errors.LedgerError as error:
                refused += 1
                assert str(source) in str(error) and "new.db" not in str(error)
                assert not list(tmp_path.glob("new.db*")), "what was refused has left something"
            for made in tmp_path.glob("new.db*"):
                made.unlink()
    assert refused > 10


def test_nothing_is_imported_over_money_that_is_known(ends: tuple[Place, Place]) -> None:
    """An operator that began in the empty database first: what it has granted must not be forgotten, nor be added up twice."""
    source, target = ends
    kept, other = filled(source), Kept(target, {})
    other.ledger.close()
    before = content(target)
    with pytest.raises(errors.LedgerRefused, match=r"is not empty \(.*1 row of accounts.*a database that no operator has used"):
        transfer.move(source, target)
    assert content(target) == before
    kept.say(said("z", 1, 10))
    kept.ledger.close()
    Kept(target, {}).ledger.close()


def test_a_ledger_is_not_moved_into_itself_nor_exported_over_a_file(tmp_path: Path) -> None:
    """A slip of the hand."""
    filled(tmp_path / "ledger.db").ledger.close()
    before = content(tmp_path / "ledger.db")
    with pytest.raises(errors.LedgerError, match=r"is not empty|is the ledger itself"):
        transfer.move(tmp_path / "ledger.db", tmp_path / "ledger.db")
    with pytest.raises(errors.LedgerRefused, match="is there already"):
        transfer.export(tmp_path / "ledger.db", tmp_path / "ledger.db")
    assert content(tmp_path / "ledger.db") == before
    Ledger.open(tmp_path / "ledger.db", create=False).close()


# Migrations -----------------------------------------------------------------------------------------------------------


def test_a_migration_says_what_it_does_and_a_rehearsal_does_nothing(tmp_path: Path) -> None:
    """Who looks after the money wants to know before the upgrade what becomes of it."""
    path = tmp_path / "ledger.db"
    Ledger.open(path, create=True).close()
    drops = ["DROP TABLE overruns", "DROP TABLE purchase_orders", "DROP INDEX instances_by_pod"]
    drops += [f"ALTER TABLE instances DROP COLUMN {column}" for column in ("pod", "pod_uid")]
    _run(path, *drops, "UPDATE alembic_version SET version_num = '0002'")
    before = path.read_bytes()
    for rehearse in (True, False):
        if rehearse:
            assert migrate.bring_up(path, rehearse=True).steps
            assert path.read_bytes() == before
        account = migrate.bring_up(path)
        if account.steps:
            assert (account.found, *(each.revision for each in account.steps)) == ("0002", "0003", "0004")
            assert account.steps[0].about.startswith("What a statement needs beside the counters")
            assert {"table overruns", "table purchase_orders"} <= set(account.steps[0].adds)
            assert set(account.steps[1].adds) == {"column instances.pod", "column instances.pod_uid"}
    assert migrate.bring_up(path) == (str(path), schema.REVISIONS[-1], [])
