"""Ledger files as people and disks leave them. If these fail, a damaged ledger becomes an empty one: budgets are refilled."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from stepdown.budget.account import Binding
from stepdown.ledger import Ledger, errors, migrate, schema
from stepdown.model.sync import Ask, Counter, LeaseReport, SyncRequest

ACCOUNT = "shop/team@0"
BINDING = Binding("shop/team", 0, 10**9, 10_000, True, frozenset({"shop/chat"}))


def message(seq: int, *asks: Ask, consumed: int = 0, instance: str = "i1") -> SyncRequest:
    report = LeaseReport(account=ACCOUNT, granted=0, returned=0, consumed=consumed, estimated=0, reserved=0, want=0)
    return SyncRequest(instance=instance, fleet="shop/default", seq=seq, asks=asks, leases=(report,))


def spend(ledger: Ledger, nusd: int, seq: int = 1) -> None:
    ledger.sync([message(seq, Ask(id=seq, rungs=({ACCOUNT: nusd},)))], 100.0 + seq)
    ledger.sync([message(seq + 1, consumed=nusd)], 101.0 + seq)


def pragma(ledger: Ledger, what: str) -> object:
    """A setting of SQLite's that stands for what a disk or another program does."""
    with ledger._database.transaction() as connection:
        result = connection.exec_driver_sql(f"PRAGMA {what}")
        return result.scalar() if result.returns_rows else None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with 700 nUSD spent, closed."""
    path = tmp_path / "ledger"
    ledger = Ledger.open(path, create=True)
    ledger.bind([BINDING], 100.0)
    spend(ledger, 700)
    ledger.close()
    return path


def spent(path: Path) -> int:
    ledger = Ledger.open(path, create=False, read_only=True)
    try:
        return ledger.balances(100.0)[ACCOUNT].spent_nusd
    finally:
        ledger.close()


def test_what_was_spent_is_there_after_a_restart(path: Path) -> None:
    """Else every restart would refill the budget."""
    ledger = Ledger.open(path, create=True)
    assert ledger.balances(100.0)[ACCOUNT].spent_nusd == 700
    ledger.close()


def test_a_missing_ledger_is_made_only_on_request(tmp_path: Path) -> None:
    """A typo in --ledger of `stepdown report` would leave files behind and say that nothing was spent."""
    with pytest.raises(errors.LedgerMissing, match="there is no ledger at"):
        Ledger.open(tmp_path / "ledger", create=False)
    with pytest.raises(errors.LedgerMissing):
        Ledger.open(tmp_path / "ledger", create=True, read_only=True)
    with pytest.raises(errors.LedgerMissing, match="folder"):
        Ledger.open(tmp_path / "none" / "ledger", create=True)


@pytest.mark.parametrize("trace", ["ledger-wal", "ledger-journal", "ledger.wal/0001.log"])
def test_no_new_ledger_beside_the_traces_of_an_old_one(tmp_path: Path, trace: str) -> None:
    """The file was deleted or its volume not mounted: a new one would forget the month's spend."""
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).write_bytes(b"x")
    with pytest.raises(errors.LedgerMissing, match=r"is gone, but .* Bring the file back from a backup"):
        Ledger.open(tmp_path / "ledger", create=True)
    assert not (tmp_path / "ledger").exists()


def test_an_empty_log_folder_is_no_trace(tmp_path: Path) -> None:
    """`stepdown run` may make its folders before its ledger."""
    (tmp_path / "ledger.wal").mkdir()
    Ledger.open(tmp_path / "ledger", create=True).close()


@pytest.mark.parametrize("size", [0, 50, 4096, 20_000])
def test_a_truncated_ledger_is_refused(path: Path, size: int) -> None:
    """SQLite takes an empty file for a new database: the spend would be zero again."""
    os.truncate(path, size)
    for read_only in (False, True):
        with pytest.raises(errors.LedgerCorrupt, match="is damaged"):
            Ledger.open(path, create=True, read_only=read_only)
    assert path.stat().st_size == size


def test_a_scrambled_ledger_is_refused(path: Path) -> None:
    """Pages that do not add up may hide grants."""
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(bytes(data))
    with pytest.raises(errors.LedgerCorrupt, match="Bring it back from a backup"):
        Ledger.open(path, create=True)


def test_whoever_verifies_a_backup_is_told_of_every_page(path: Path) -> None:
    """Sums that agree beside a damaged index: the keeper refuses the file on the day on which it is needed."""
    data = path.read_bytes()
    for page in range(1, len(data) // 4096):
        path.write_bytes(data[: page * 4096] + b"\xff" * 64 + data[page * 4096 + 64 :])
        try:
            ledger = Ledger.open(path, create=False, read_only=True)
        except errors.LedgerCorrupt:
            continue
        try:
            assert "the file is damaged: " in ledger.verify()[0], f"page {page + 1}"
        except errors.LedgerCorrupt:
            pass
        finally:
            ledger.close()


def test_other_files_are_not_taken_for_ledgers(tmp_path: Path) -> None:
    """A wrong --ledger must not write tables into somebody's database."""
    text = tmp_path / "notes.txt"
    text.write_text("hello " * 50)
    with pytest.raises(errors.LedgerForeign, match="nor any SQLite file"):
        Ledger.open(text, create=True)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(errors.LedgerForeign, match="of another program"):
        Ledger.open(other, create=True)
    assert other.read_bytes() == before
    with pytest.raises(errors.LedgerForeign, match="is a folder"):
        Ledger.open(tmp_path, create=True)
    with pytest.raises(errors.LedgerRefused, match="a ledger at mysql:// is not supported"):
        Ledger.open("mysql://db/ledger", create=True)


@pytest.mark.parametrize("spoil", ["DELETE FROM alembic_version", "DROP TABLE alembic_version", "DROP TABLE bindings"])
def test_a_ledger_with_something_missing_is_refused_before_it_is_used(path: Path, spoil: str) -> None:
    """Somebody's repair, or a copy by hand: half of it would be taken for all of it."""
    connection = sqlite3.connect(path)
    connection.execute(spoil)
    connection.commit()
    connection.close()
    for how in ({"create": True}, {"create": False, "read_only": True}, {"create": False, "beside": True}):
        with pytest.raises(errors.LedgerCorrupt, match=r"Bring it back from a backup"):
            Ledger.open(path, **how)


def test_a_newer_ledger_is_refused(path: Path) -> None:
    """After a rollback, an older build would misread what a newer one wrote."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.execute("UPDATE meta SET value = '0998' WHERE name = 'oldest'")
    connection.close()
    with pytest.raises(errors.LedgerNewer, match=r"schema 0999; this build knows up to 0004.*newer Stepdown"):
        Ledger.open(path, create=False)


def test_a_newer_ledger_that_only_adds_is_kept_on(path: Path) -> None:
    """`helm rollback` after a release that made a column: else there is no way back from a bad release."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.execute("ALTER TABLE accounts ADD COLUMN later BIGINT NOT NULL DEFAULT 0")
    connection.close()
    ledger = Ledger.open(path, create=False)
    spend(ledger, 800, seq=3)
    ledger.bind([BINDING, Binding("shop/other", 0, 10**9, 5, True, frozenset())], 200.0)
    ledger.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0999",), "it stays what it is"
    connection.close()
    assert spent(path) == 800


def test_one_keeper_at_a_time_and_readers_beside_it(path: Path) -> None:
    """Two `stepdown run` on one ledger would grant the same money twice; `stepdown status` must work while one runs."""
    keeper = Ledger.open(path, create=False)
    with pytest.raises(errors.LedgerBusy, match=rf"kept by another process \(pid {os.getpid()}\)"):
        Ledger.open(path, create=True)
    reader = Ledger.open(path, create=False, read_only=True)
    spend(keeper, 50, seq=3)
    assert reader.balances(100.0)[ACCOUNT].spent_nusd == 700
    keeper.sync([message(5, consumed=750)], 106.0)
    assert reader.balances(100.0)[ACCOUNT].spent_nusd == 750
    with pytest.raises(errors.LedgerReadOnly):
        reader.bind([], 100.0)
    reader.close()
    keeper.close()
    Ledger.open(path, create=False).close()


def test_another_program_that_locks_the_file_is_named_as_such(path: Path) -> None:
    """A backup tool that holds the file must not look like damage."""
    keeper = Ledger.open(path, create=False)
    pragma(keeper, "busy_timeout = 10")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(errors.LedgerBusy, match="locked by another program"):
        keeper.bind([BINDING], 100.0)
    other.execute("ROLLBACK")
    keeper.bind([BINDING], 100.0)
    other.close()
    keeper.close()


def test_a_full_disk_grants_nothing_and_loses_nothing(path: Path) -> None:
    """A grant that is not on the disk would be granted again after a crash."""
    ledger = Ledger.open(path, create=False)
    pragma(ledger, f"max_page_count = {pragma(ledger, 'page_count')}")
    many = tuple(Counter(route=f"shop/r{n}", model="m", request_class="default", day=1, requests=1) for n in range(2000))
    full = SyncRequest(instance="i2", fleet="shop/default", seq=1, counters=many, asks=(Ask(id=1, rungs=({ACCOUNT: 5},)),))
    with pytest.raises(errors.LedgerFull, match="Make room"):
        ledger.sync([full], 200.0)
    assert ledger.balances(200.0)[ACCOUNT].committed_nusd == 700
    pragma(ledger, "max_page_count = 1000000")
    (answer,) = ledger.sync([full], 201.0)
    assert [each.rung for each in answer.asks] == [0]
    assert ledger.balances(200.0)[ACCOUNT].committed_nusd == 705
    assert ledger.verify() == []
    ledger.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(path: Path) -> None:
    """A volume mounted read-only must be told apart from damage."""
    path.parent.chmod(0o500)
    try:
        with pytest.raises(errors.LedgerReadOnly, match="cannot be written"):
            Ledger.open(path.parent / "other", create=True)
    finally:
        path.parent.chmod(0o700)


def test_a_read_only_database_is_named(path: Path) -> None:
    """The same when it turns read-only under a keeper that runs."""
    ledger = Ledger.open(path, create=False)
    pragma(ledger, "query_only = ON")
    with pytest.raises(errors.LedgerReadOnly, match="Make the file and its folder writable"):
        ledger.bind([], 200.0)
    ledger.close()


KEEPER = """
import sys
from pathlib import Path
from stepdown.ledger import Ledger
from tests.unit.test_ledger_files import BINDING, spend
ledger = Ledger.open(Path(sys.argv[1]), create=True)
ledger.bind([BINDING], 100.0)
for seq in range(1, 1000, 2):
    spend(ledger, seq + 1, seq)
    print(seq + 1, flush=True)
"""


def test_a_keeper_that_is_killed_loses_no_answered_spend(tmp_path: Path) -> None:
    """What a proxy was told is durable must be there after a kill -9, and the lock must be free again."""
    path = tmp_path / "ledger"
    with subprocess.Popen([sys.executable, "-c", KEEPER, str(path)], stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        told = [int(keeper.stdout.readline()) for _ in range(20)]
        keeper.send_signal(signal.SIGKILL)
        told += [int(line) for line in keeper.stdout.read().split()]
    ledger = Ledger.open(path, create=False)
    assert ledger.balances(100.0)[ACCOUNT].spent_nusd >= max(told)
    assert ledger.verify() == []
    ledger.close()


def test_half_made_ledgers_are_made_afresh(tmp_path: Path) -> None:
    """A kill while the very first ledger is made leaves a draft, not a ledger."""
    (tmp_path / "ledger.new").write_bytes(b"half")
    Ledger.open(tmp_path / "ledger", create=True).close()
    assert not (tmp_path / "ledger.new").exists()


def test_a_backup_taken_while_it_runs_is_a_ledger(path: Path, tmp_path: Path) -> None:
    """The advice of every error message is a backup: `sqlite3 ledger .backup` must make one."""
    keeper = Ledger.open(path, create=False)
    source, target = sqlite3.connect(path), sqlite3.connect(tmp_path / "backup")
    source.backup(target)
    source.close()
    target.close()
    keeper.close()
    assert spent(tmp_path / "backup") == 700


def test_migrations_arrive_at_the_schema_that_new_ledgers_have() -> None:
    """An upgraded ledger that differs from a new one fails a year later, in one customer's file."""
    made, migrated = sa.create_engine("sqlite://"), sa.create_engine("sqlite://")
    with made.begin() as connection:
        schema.metadata.create_all(connection)
        connection.execute(schema.instances.insert(), schema.NOBODY)
        connection.execute(schema.meta.insert(), schema.FIRST_META)
        new = described(connection)
    with migrated.begin() as connection:
        migrate.upgrade(connection)
        assert migrate.revision_of(connection, None) == schema.REVISIONS[-1]
        assert described(connection) == new


def test_a_ledger_of_the_first_schema_is_brought_up_to_date(path: Path) -> None:
    """An upgrade of the operator must take the month's spend along; who only reads must not upgrade in passing."""
    old = path.parent / "old"
    shutil.copy(path, old)
    with sqlite3.connect(old) as connection:
        connection.execute("DROP INDEX instances_by_pod")
        for table, column in (
            ("instances", "pod"),
            ("instances", "pod_uid"),
            ("instances", "born"),
            ("instances", "unheard"),
            ("accounts", "awaited"),
            ("accounts", "unaccounted"),
        ):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute("DROP TABLE overruns")
        connection.execute("DROP TABLE purchase_orders")
        connection.execute("DELETE FROM meta")
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()
    with pytest.raises(errors.LedgerOld, match="has schema 0001"):
        Ledger.open(old, create=False, read_only=True)
    ledger = Ledger.open(old, create=False)
    assert ledger.take_epoch("stepdown-0") == 1
    spend(ledger, 800, seq=3)
    assert ledger.balances(100.0)[ACCOUNT].spent_nusd == 800
    assert ledger.verify() == []
    ledger.close()


def described(connection: sa.Connection) -> dict[str, object]:
    inspector = sa.inspect(connection)
    found: dict[str, object] = {
        "nobody": connection.execute(sa.select(schema.instances)).all(),
        "meta": sorted(connection.execute(sa.select(schema.meta)).all()),
    }
    for table in inspector.get_table_names():
        sql = connection.exec_driver_sql(f"SELECT sql FROM sqlite_master WHERE name = '{table}'").scalar() or ""
        found[table] = {
            "columns": [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "foreign": sorted((f["constrained_columns"], f["referred_table"]) for f in inspector.get_foreign_keys(table)),
            "unique": sorted(u["column_names"] for u in inspector.get_unique_constraints(table)),
            "indexes": sorted((i["name"], i["column_names"]) for i in inspector.get_indexes(table)),
            "rowid": "WITHOUT ROWID" not in sql,
        }
    return found


def test_opening_a_ledger_of_the_newest_schema_does_not_import_alembic(path: Path) -> None:
    """It would cost a process that serves for months ten megabytes."""
    code = (
        "import sys; from stepdown.ledger import Ledger; from pathlib import Path; "
        "Ledger.open(Path(sys.argv[1]), create=True).close(); assert 'alembic' not in sys.modules"
    )
    for each in (path, path.parent / "new"):
        subprocess.run([sys.executable, "-c", code, str(each)], check=True)


def test_a_day_of_counters_of_a_hundred_routes_is_small(tmp_path: Path) -> None:
    """A year of a busy cluster must fit a small volume, whatever the number of proxies that came and went."""
    path = tmp_path / "ledger"
    ledger = Ledger.open(path, create=True)
    counters = tuple(
        Counter(
            route=f"shop/route-{n}",
            model=f"vendor/model-{m}",
            request_class="default",
            day=20_000,
            requests=10**6,
            successes=10**6,
            input_tokens=10**10,
            output_tokens=10**9,
            cost_nusd=10**12,
        )
        for n in range(100)
        for m in range(3)
    )
    ledger.sync([], 0.0)
    empty = path.stat().st_size
    for pod in range(10):
        ledger.sync([SyncRequest(instance=f"pod-{pod}", fleet="shop/default", seq=1, counters=counters)], 20_000 * 86_400.0)
        ledger.sync([SyncRequest(instance=f"pod-{pod}", fleet="shop/default", seq=2, closing=True)], 20_000 * 86_400.0)
    assert ledger.route_totals(20_000, 20_000)["shop/route-7"].requests == 3 * 10 * 10**6
    assert ledger.verify() == []
    ledger.close()
    with sqlite3.connect(path) as connection:
        connection.execute("VACUUM")
    connection.close()
    assert path.stat().st_size - empty < 100_000
    shutil.rmtree(tmp_path)
