"""The ledger in PostgreSQL, where more than one operator may have it open. If these fail, two of them grant the same money, or
a database that restarts is taken for one that is empty.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from stepdown.budget.account import Binding
from stepdown.ledger import Ledger, errors, migrate, schema
from stepdown.ledger.database import again
from stepdown.model.sync import Ask, Counter, LeaseReport, SyncRequest
from tests.postgres import LOCKED, Server
from tests.unit.test_ledger_machine import LedgerMachine

ACCOUNT = "shop/team@0"
BINDING = Binding("shop/team", 0, 10**9, 10_000, True, frozenset({"shop/chat"}))


def message(seq: int, nusd: int = 0, instance: str = "a", **more: object) -> SyncRequest:
    report = LeaseReport(account=ACCOUNT, granted=0, returned=0, consumed=0, estimated=0, reserved=0, want=0)
    asks = (Ask(id=seq, rungs=({ACCOUNT: nusd},)),) if nusd else ()
    return SyncRequest(instance=instance, fleet="shop/default", seq=seq, asks=asks, leases=(report,), **more)  # type: ignore[arg-type]


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.database()


@pytest.fixture
def keeper(url: str) -> Iterator[Ledger]:
    ledger = Ledger.open(url, create=True)
    ledger.take_epoch("stepdown-0")
    ledger.bind([BINDING], 100.0)
    yield ledger
    ledger.close()


def committed(ledger: Ledger) -> int:
    assert ledger.verify() == []
    return ledger.balances(100.0)[ACCOUNT].committed_nusd


def session(url: str, statement: str) -> list[tuple[object, ...]]:
    """What somebody else does in the database."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


# Two keepers ----------------------------------------------------------------------------------------------------------


def test_two_keepers_at_once_never_grant_more_than_the_limit(keeper: Ledger, url: str) -> None:
    """The promise with two replicas: whoever is overtaken stops in mid-grant, and the other has seen all of it."""
    granted = {"a": 0, "b": 0}
    overtaken = threading.Event()

    def grant(ledger: Ledger, name: str) -> None:
        for seq in range(1, 400):
            (answer,) = ledger.sync([message(seq, 30, f"{name}{seq}")], 100.0)
            granted[name] += 30 * (answer.asks[0].rung == 0)
            if granted[name] > 1_500:
                overtaken.set()

    def earlier() -> None:
        with pytest.raises(errors.LedgerFenced, match="stepdown-1 took epoch 2"):
            grant(keeper, "a")

    def later() -> None:
        overtaken.wait(30)
        ledger = Ledger.open(url, create=False)
        ledger.take_epoch("stepdown-1")
        grant(ledger, "b")
        ledger.close()

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(earlier), pool.submit(later)]:
            each.result(60)
    assert (granted["a"] > 1_500, sum(granted.values())) == (True, 9_990)
    reader = Ledger.open(url, create=False, read_only=True)
    assert committed(reader) == 9_990
    reader.close()


def test_who_takes_over_waits_for_a_grant_that_is_being_made(keeper: Ledger, url: str) -> None:
    """Else it would begin without having seen it."""
    holds, done = threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> None:
        holds.set()
        done.wait(10)

    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(keeper._write, slow)
        holds.wait(10)
        other = Ledger.open(url, create=False)
        taking = pool.submit(other.take_epoch, "stepdown-1")
        with pytest.raises(TimeoutError):
            taking.result(0.3)
        done.set()
        writing.result(10)
        assert taking.result(10) == 2
        other.close()


def test_two_that_start_at_once_make_one_ledger(url: str) -> None:
    """Both replicas come up in an empty database."""
    with ThreadPoolExecutor(4) as pool:
        for ledger in pool.map(lambda _: Ledger.open(url, create=True), range(4)):
            ledger.close()
    assert session(url, "SELECT count(*) FROM instances") == [(1,)]


# A database that fails ------------------------------------------------------------------------------------------------


def test_a_broken_connection_is_made_anew_and_nobody_notices(keeper: Ledger, url: str) -> None:
    """A failover, or a firewall that forgets: an ask must not be refused for it."""
    keeper.sync([message(1, 400)], 100.0)
    killed = session(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'stepdown'")
    assert killed
    (answer,) = keeper.sync([message(2, 500, "b")], 100.0)
    assert (answer.asks[0].rung, committed(keeper)) == (0, 900)


def test_a_database_that_stops_is_said_so_and_is_there_again(postgres: Server, keeper: Ledger) -> None:
    """While it is away nothing is granted, in words; what was answered before is there afterwards."""
    keeper.sync([message(1, 400)], 100.0)
    postgres.stop()
    try:
        with pytest.raises(errors.LedgerInterrupted, match="was interrupted, nothing of this was written"):
            keeper.sync([message(2, 500, "b")], 100.0)
    finally:
        postgres.start()
    assert committed(keeper) == 400
    assert keeper.sync([message(2, 500, "b")], 100.0)[0].asks[0].rung == 0


def test_a_deadlock_costs_nobody_anything(keeper: Ledger, url: str) -> None:
    """Somebody looks after the database by hand, in another order than the keeper: the keeper is the one to give way, once."""
    keeper.sync([message(1, 400)], 100.0)
    with psycopg.connect(url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SET deadlock_timeout = '60s'")
        other.execute("SELECT * FROM leases FOR UPDATE")
        asking = pool.submit(keeper.sync, [message(2, 500)], 100.0)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'stepdown'"
        while session(url, waiting) == [(0,)]:
            pass
        other.execute("SELECT * FROM meta FOR UPDATE")  # Now each waits for the other.
        other.commit()
        assert asking.result(20)[0].asks[0].rung == 0
    assert committed(keeper) == 500


def test_a_database_that_hangs_does_not_hang_the_keeper(postgres: Server, keeper: Ledger) -> None:
    """Its disk stalls, its node freezes: the connection stays open and says nothing. Proxies must be told that the keeper is
    away, so that they serve from what they hold, and the keeper must go on by itself when the database does."""
    keeper.sync([message(1, 400)], 100.0)
    keeper._database._deadline._limit_s = 1.0  # type: ignore[attr-defined]
    with postgres.hung(), pytest.raises(errors.LedgerInterrupted):
        keeper.sync([message(2, 500, "b")], 100.0)
    assert keeper.sync([message(2, 500, "b")], 100.0)[0].asks[0].rung == 0
    assert committed(keeper) == 900


def test_a_statement_that_takes_for_ever_is_given_up(keeper: Ledger) -> None:
    """A server that is too busy is as good as none, and the one thread of the keeper must not wait for it."""
    with pytest.raises(errors.LedgerInterrupted, match="statement timeout"):
        keeper._write(lambda connection: connection.exec_driver_sql("SET LOCAL statement_timeout = 50; SELECT pg_sleep(9)"))


def test_a_migration_may_take_longer_than_a_proxy_waits(keeper: Ledger) -> None:
    """An index on a year's counters: given up after five seconds, the upgrade would never come to its end."""
    with keeper._database.opening() as connection:
        shown = [
            connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("statement_timeout", "idle_in_transaction_session_timeout")
        ]
    assert shown == ["10min", "10min"]
    for name, wanted in (("statement_timeout", "5s"), ("idle_in_transaction_session_timeout", "5s"), ("lock_timeout", "3s")):
        assert keeper._read(lambda connection, name=name: connection.exec_driver_sql(f"SHOW {name}").scalar()) == wanted


def test_a_standby_that_has_everything_takes_over_in_the_middle_of_a_term(postgres: Server) -> None:
    """A failover as an operator of PostgreSQL does it: the next ask is granted, and what was granted is there."""
    with failing_over(postgres) as (keeper, fail_over):
        keeper.sync([message(1, 400)], 100.0)
        fail_over(lagging=False)
        answer = keeper.sync([message(2, 500, "b")], 100.0)[0]
        assert (answer.asks[0].rung, committed(keeper)) == (0, 900)


def test_a_standby_that_lacks_the_last_grants_ends_the_term(postgres: Server) -> None:
    """It was not synchronous: what was granted last is known to nobody but the proxies and the witness."""
    with failing_over(postgres) as (keeper, fail_over):
        keeper.sync([message(1, 400)], 100.0)
        fail_over(lagging=True)
        with pytest.raises(errors.LedgerFenced, match="has gone back"):
            keeper.sync([message(3, 500, "b")], 100.0)


@contextlib.contextmanager
def failing_over(postgres: Server) -> Iterator[tuple[Ledger, Callable[..., None]]]:
    """A keeper on a server of two, and what makes the other the only one. `lagging`: without the last grant."""
    url = postgres.database()
    first, second = postgres.standby(), None
    (first.folder / "data" / "standby.signal").unlink()
    try:
        first.start()
        second = first.standby()
        second.start()
        ledger = Ledger.open(url.replace(str(postgres.folder), f"{first.folder}&host={second.folder}"), create=True)
        ledger.take_epoch("stepdown-0")
        ledger.bind([BINDING], 100.0)

        def fail_over(*, lagging: bool) -> None:
            assert second is not None
            second.wait_for(first)
            if lagging:
                second.stop()
                ledger.sync([message(2, 100, "c")], 100.0)
            first.stop()
            if lagging:
                second.start()
            second.promote()

        yield ledger, fail_over
        ledger.close()
    finally:
        for each in (first, second):
            if each is not None:
                each.remove()


def test_a_standby_that_lagged_behind_is_found_out_in_the_middle_of_a_term(keeper: Ledger, url: str) -> None:
    """It does not know the last grants, and would make them again; a new term compares it with the witness."""
    keeper.sync([message(1, 400)], 100.0)
    keeper.sync([message(2, 400)], 100.0)
    session(url, "UPDATE meta SET value = (value::int - 1)::text WHERE name = 'turn'")
    with pytest.raises(errors.LedgerFenced, match="has gone back, from turn 4 to 3: it is an older copy"):
        keeper.sync([message(3, 400)], 100.0)
    assert keeper.take_epoch("stepdown-0") == 2
    assert keeper.sync([message(3, 400)], 100.0)[0].asks[0].rung == 0


FAULTS: dict[str, Callable[[], errors.LedgerInterrupted]] = {
    "before": lambda: errors.LedgerInterrupted("deadlock"),
    "in doubt": lambda: errors.LedgerInterrupted("lost at commit", unsure=True),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("once", [False, True])
def test_an_interrupted_transaction_is_done_again_unless_it_may_not_happen_twice(fault: str, once: bool) -> None:
    """A deadlock must not cost a request; a settlement must not be refused as done, because it was."""
    attempts, undone = [0], [0]

    def work() -> str:
        attempts[0] += 1
        if attempts[0] == 1:
            raise FAULTS[fault]()
        return "done"

    def failed() -> None:
        undone[0] += 1

    if once and fault == "in doubt":
        with pytest.raises(errors.LedgerInterrupted):
            again(work, failed, once=once)
    else:
        assert again(work, failed, once=once) == "done"
    assert undone == [1]


def test_a_conflict_that_stays_is_given_up_within_a_proxys_patience() -> None:
    """It waits two seconds for an answer."""

    def work() -> None:
        raise errors.LedgerInterrupted("deadlock")

    failures: list[None] = []
    with pytest.raises(errors.LedgerInterrupted):
        again(work, lambda: failures.append(None))
    assert len(failures) == 4


# What is in a database ------------------------------------------------------------------------------------------------


def test_no_ledger_is_never_a_new_one_for_a_reader(url: str) -> None:
    """A report from the wrong database would say that nothing was spent."""
    for arguments in ({"create": False}, {"create": True, "read_only": True}):
        with pytest.raises(errors.LedgerMissing, match="there is no ledger in"):
            Ledger.open(url, **arguments)
    assert session(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_a_database_of_another_program_is_left_alone(url: str) -> None:
    """A table of the same name is somebody's data."""
    session(url, "CREATE TABLE names (whose text)")
    with pytest.raises(errors.LedgerForeign, match="has a table 'names' that is no ledger's"):
        Ledger.open(url, create=True)
    separator = "&" if "?" in url else "?"
    session(url, "CREATE SCHEMA stepdown")
    ledger = Ledger.open(f"{url}{separator}options=-csearch_path%3Dstepdown", create=True)
    ledger.close()
    assert session(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'stepdown'") == [(len(schema.metadata.tables),)]


def test_what_cannot_be_reached_is_named_without_its_password(url: str) -> None:
    """The message goes to a log."""
    with pytest.raises(errors.LedgerError) as raised:
        Ledger.open(url.replace("stepdown@/t", "stepdown:secret@/none"), create=True)
    assert "secret" not in str(raised.value)
    assert "does not exist" in str(raised.value)
    with pytest.raises(errors.LedgerRefused, match="is no URL"):
        Ledger.open("postgresql://db:port/ledger", create=True)


def test_a_password_lies_in_a_file_and_may_change_while_the_keeper_works(url: str, tmp_path: Path) -> None:
    """A mounted Secret that is rotated: a keeper that knew the old password only would end with the next broken connection."""
    name = url.partition("@/")[2].partition("?")[0]
    session(url, f"CREATE ROLE {LOCKED} LOGIN PASSWORD 'first'; ALTER DATABASE {name} OWNER TO {LOCKED}")
    secret = tmp_path / "password"
    guarded = url.replace("stepdown@", f"{LOCKED}@") + f"&passwordfile={secret}"
    try:
        with pytest.raises(errors.LedgerUnavailable, match=r"password of the ledger .* cannot be read from"):
            Ledger.open(guarded, create=True)
        secret.write_text("wrong")
        with pytest.raises(errors.LedgerUnavailable, match="password authentication failed"):
            Ledger.open(guarded, create=True)
        secret.write_text("first\n")
        ledger = Ledger.open(guarded, create=True)
        session(url, f"ALTER ROLE {LOCKED} PASSWORD 'second'")
        secret.write_text("second")
        assert session(url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{LOCKED}'")
        ledger.bind([BINDING], 100.0)
        ledger.close()
    finally:
        session(url, f"REASSIGN OWNED BY {LOCKED} TO stepdown; DROP ROLE {LOCKED}")


def test_a_password_in_the_address_is_never_shown(url: str) -> None:
    """The address stands in the log, in the message of a fence, and in what people paste into an issue."""
    for hidden in (url.replace("stepdown@", "stepdown:secret@"), f"{url}&password=secret"):
        ledger = Ledger.open(hidden, create=True)
        assert "secret" not in ledger._database.where
        ledger.close()


def test_who_reads_cannot_write(keeper: Ledger, url: str) -> None:
    """`stepdown status` must not change what it shows."""
    reader = Ledger.open(url, create=False, read_only=True)
    assert reader.balances(100.0).keys() == {ACCOUNT}
    with pytest.raises(errors.LedgerReadOnly):
        reader.accept_loss()
    reader.close()


def test_a_grant_is_durable_whatever_the_server_is_set_to(url: str) -> None:
    """`synchronous_commit = off` loses the last moments of a crash: grants that were answered."""
    name = url.partition("@/")[2].partition("?")[0]
    for set_to, wanted in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
        session(url, f"ALTER DATABASE {name} SET synchronous_commit = {set_to}")
        ledger = Ledger.open(url, create=True)
        assert ledger._read(lambda connection: connection.exec_driver_sql("SHOW synchronous_commit").scalar()) == wanted
        ledger.close()


def test_migrations_arrive_at_the_same_schema(url: str, postgres: Server) -> None:
    """An upgraded ledger that differs from a new one fails a year later."""
    Ledger.open(url, create=True).close()
    migrated = postgres.database()
    engine = sa.create_engine(migrated.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        migrate.upgrade(connection)
    engine.dispose()
    columns = (
        "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns "
        "WHERE table_schema = 'public' ORDER BY table_name, ordinal_position"
    )
    indexes = (
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY indexname"
    )
    for statement in (columns, indexes, "SELECT * FROM meta ORDER BY name", "SELECT * FROM instances"):
        assert session(migrated, statement) == session(url, statement)


def test_a_ledger_of_an_earlier_release_is_brought_up_to_date(url: str) -> None:
    """It lacks the tables that came later, and must not be taken for somebody else's for that."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        migrate.upgrade(connection, schema.REVISIONS[0])
    engine.dispose()
    with pytest.raises(errors.LedgerOld):
        Ledger.open(url, create=False, read_only=True)
    ledger = Ledger.open(url, create=False)
    ledger.take_epoch("stepdown-0")
    ledger.bind([BINDING], 100.0)
    assert ledger.verify() == []
    ledger.close()


def test_numbers_and_names_at_their_limits_are_kept(keeper: Ledger) -> None:
    """What one database takes and the other does not would break the batch of everybody else."""
    far = Counter(
        route="shop/\u00e9\u4e2d\U0001f600", model="m" * 512, request_class="default", day=146_000, cost_nusd=2**60 - 1
    )
    keeper.sync([message(1, counters=(far,))], 100.0)
    assert [each.cost_nusd for each in keeper.counters(0, 200_000)] == [2**60 - 1]
    keeper.bind([BINDING, Binding("shop/far", 0, 10**12, 5, True, frozenset({far.route}))], 100.0)
    assert keeper.balances(100.0)["shop/far@0"].opening_nusd == 2**60 - 1
    assert keeper.verify() == []
    for bad in ("shop/a\0b", "\0"):
        with pytest.raises(errors.LedgerRefused, match="a character that no database can keep"):
            keeper.sync([message(2, counters=(Counter(route=bad, model="m", request_class="default", day=1),))], 100.0)


def test_an_older_copy_of_the_database_refills_nothing(keeper: Ledger, url: str) -> None:
    """A restore of last night's dump: what was granted since stays charged until it is heard of, as with a file."""
    witness: dict[str, int] = {}

    def begin(ledger: Ledger) -> bool:
        ledger.take_epoch("stepdown-0")
        ledger.guard()
        begun = ledger.begin(witness, 100.0)
        raise_marks(ledger)
        return begun.proven

    def raise_marks(ledger: Ledger) -> None:
        witness.update(ledger.needed_marks())
        ledger.set_marks(witness)

    def grant(ledger: Ledger, seq: int, nusd: int) -> None:
        asked = message(seq, nusd, whole=True)
        while ledger.judge([asked], 100.0, [0]).short:
            raise_marks(ledger)

    assert begin(keeper)
    grant(keeper, 1, 400)
    keeper._database.close()
    name = url.partition("@/")[2].partition("?")[0]
    session(url.replace(name, "postgres"), f"CREATE DATABASE copy_of_{name} TEMPLATE {name}")
    grant(keeper, 2, 3_000)
    keeper._database.close()
    older = Ledger.open(url.replace(name, f"copy_of_{name}"), create=False)
    assert not begin(older)
    assert committed(older) == 3_000 + 100
    report = LeaseReport(account=ACCOUNT, granted=3_000, returned=0, consumed=9, estimated=0, reserved=0, want=0)
    older.sync([SyncRequest(instance="a", fleet="shop/default", seq=3, leases=(report,), whole=True)], 100.0)
    assert committed(older) == 3_000
    older.close()


def test_everything_that_may_happen_to_a_ledger_may_happen_to_this_one(postgres: Server) -> None:
    """The state machine of `test_ledger_machine`, shorter: the rules are the same code, the statements another database's."""

    class Machine(LedgerMachine):
        def __init__(self) -> None:
            self.url = postgres.database()
            super().__init__()

        def open_ledger(self) -> Ledger:
            return Ledger.open(self.url, create=True)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=4,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            phases=[Phase.explicit, Phase.generate],
        ),
    )
