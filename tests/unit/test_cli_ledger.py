"""`stepdown ledger …` at the keyboard. If these fail, a password is seen by others, or a slip of the hand costs a ledger."""

import sqlite3
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from stepdown.cli import place
from stepdown.cli.app import stepdown
from stepdown.ledger import Ledger
from stepdown.model.sync import SyncRequest
from tests.postgres import Server
from tests.postgres import postgres as postgres


def call(*arguments: str, **environment: str) -> Result:
    return CliRunner(env={place.VARIABLE: "", place.PASSWORD_VARIABLE: "", **environment}).invoke(stepdown, arguments)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    made = Ledger.open(path, create=True)
    made.sync([SyncRequest(instance="a", fleet="shop/default", seq=1)], 100.0)
    made.close()
    return path


def test_a_ledger_goes_to_postgresql_and_back(ledger: Path, tmp_path: Path, postgres: Server) -> None:
    """The way that the documentation tells, word for word."""
    url = postgres.database()
    moved = call("ledger", "import", str(ledger), STEPDOWN_LEDGER=url)
    assert (moved.exit_code, "1 row, epoch 2" in moved.output, "every sum agrees" in moved.output) == (0, True, True), (
        moved.output
    )
    assert "every sum agrees" in call("ledger", "verify", url).output
    again = call("ledger", "init", url)
    assert (again.exit_code, "there is a ledger already" in again.output) == (1, True)
    assert call("ledger", "export", url, "-o", str(tmp_path / "copy.db")).exit_code == 0
    assert call("ledger", "import", str(tmp_path / "copy.db"), str(tmp_path / "back.db")).exit_code == 0
    assert call("ledger", "verify", str(tmp_path / "back.db")).exit_code == 0
    refused = call("ledger", "import", str(tmp_path / "copy.db"), str(tmp_path / "back.db"))
    assert (refused.exit_code, "is not empty (1 row of instances)" in refused.output) == (1, True)


def test_an_export_may_go_to_stdout(ledger: Path, tmp_path: Path) -> None:
    """Out of a pod, with nowhere to put a file."""
    done = call("ledger", "export", str(ledger), "-o", "-")
    assert (done.exit_code, "→ stdout" in done.stderr) == (0, True)
    (tmp_path / "copy.db").write_bytes(done.stdout_bytes)
    assert call("ledger", "verify", str(tmp_path / "copy.db")).exit_code == 0


def test_a_migration_is_told_in_words(ledger: Path) -> None:
    connection = sqlite3.connect(ledger)
    connection.executescript(
        "DROP INDEX instances_by_pod; ALTER TABLE instances DROP COLUMN pod; ALTER TABLE instances DROP COLUMN pod_uid;"
        "DROP TABLE overruns; DROP TABLE purchase_orders; UPDATE alembic_version SET version_num = '0002';"
    )
    connection.close()
    rehearsed = call("ledger", "migrate", "--dry-run", str(ledger))
    assert "schema 0002 would become" in rehearsed.output
    assert "adds table purchase_orders" in rehearsed.output
    assert rehearsed.output.endswith("Nothing was changed.\n")
    assert call("ledger", "verify", str(ledger)).exit_code == 3, "a reader may not upgrade it"
    assert "What was there is unchanged." in call("ledger", "migrate", str(ledger)).output
    assert "nothing to do" in call("ledger", "migrate", str(ledger)).output
    assert call("ledger", "verify", str(ledger)).exit_code == 0


def test_a_file_of_something_else_is_no_ledger_that_is_there_already(ledger: Path) -> None:
    """Who is told that there is one goes and looks for a backup of his shopping list."""
    (ledger.parent / "notes").write_text("milk\n" * 50)
    for given, code, says in (("notes", 3, "is not a ledger"), ("ledger.db", 1, "there is a ledger already")):
        refused = call("ledger", "init", str(ledger.parent / given))
        assert (refused.exit_code, says in refused.output) == (code, True), refused.output
    assert (ledger.parent / "notes").read_text() == "milk\n" * 50


@pytest.mark.parametrize("url", ["postgresql://me:secret@/x?host=/nowhere", "postgresql:///x?host=/nowhere&password=secret"])
def test_a_password_is_not_written_into_a_command(url: str) -> None:
    """Whoever lists processes would have it, and so has the shell's history."""
    refused = call("ledger", "verify", url)
    assert (refused.exit_code, "Put the whole address into STEPDOWN_LEDGER" in refused.output) == (2, True)
    elsewhere = call("ledger", "verify", STEPDOWN_LEDGER=url)
    assert (elsewhere.exit_code, "secret" in elsewhere.output) == (3, False)


def test_the_file_with_the_password_goes_with_the_address() -> None:
    """A pod has the address in one variable and the file in another; where the address has a password, that holds."""
    given = "/etc/stepdown/ledger/password"
    for url, wanted in (
        ("postgresql://me@db/x", f"postgresql://me@db/x?passwordfile={given}"),
        ("postgresql://me@db/x?sslmode=require", f"postgresql://me@db/x?sslmode=require&passwordfile={given}"),
        ("postgresql://me:pw@db/x", "postgresql://me:pw@db/x"),
        ("postgresql://me@db/x?passwordfile=/other", "postgresql://me@db/x?passwordfile=/other"),
    ):
        assert place.with_password_file(url, given) == wanted
        assert place.shown(url) == "postgresql://me@db/x"


def test_an_address_as_messages_name_it_is_that_of_the_environment(postgres: Server) -> None:
    """They show no password and no options, and what they tell to run is pasted into the operator's pod."""
    url = postgres.database()
    assert call("ledger", "init", STEPDOWN_LEDGER=url).exit_code == 0
    named = place.shown(url)
    assert named != url
    assert call("ledger", "verify", named, STEPDOWN_LEDGER=url).exit_code == 0
    assert call("ledger", "verify", f"{named}x", STEPDOWN_LEDGER=url).exit_code == 3


@pytest.mark.parametrize("given", ["mysql://db/x", ".", ""])
def test_what_is_no_place_of_a_ledger_is_said_at_once(given: str) -> None:
    with pytest.raises(click.UsageError, match=r"postgresql://USER@HOST/DATABASE"):
        place.LedgerPlace().convert(given, None, None)
