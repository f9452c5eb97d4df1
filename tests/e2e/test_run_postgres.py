"""`stepdown run` with its ledger in PostgreSQL. If this fails, two people with one database each spend the whole budget."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stepdown.ledger import Ledger
from tests.e2e.process import RunProcess
from tests.e2e.test_run import budget, route
from tests.postgres import Server
from tests.postgres import postgres as postgres
from tests.upstream import SimulatorProcess


@pytest.fixture
def upstream() -> Iterator[SimulatorProcess]:
    with SimulatorProcess("--output", "150", "200") as simulator:
        yield simulator


def test_the_second_takes_over_with_all_that_is_known_and_the_first_ends(
    tmp_path: Path, upstream: SimulatorProcess, postgres: Server
) -> None:
    """A database has no lock as a file has: who was overtaken must end, and say by whom; and the password must not be seen."""
    (tmp_path / "policy.yaml").write_text(route("chat") + budget("1.00"))
    url = postgres.database().replace("stepdown@", "stepdown:secret@")
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    first, second = (
        RunProcess(tmp_path / "policy.yaml", None, upstream=upstream.url, env={"STEPDOWN_LEDGER": url}, cwd=folder)
        for folder in folders
    )
    with first:
        assert first.chat("chat").status == 200
        with second:
            assert first.wait() == 3
            assert "the ledger has another keeper: stepdown run" in first.error
            assert second.chat("chat").status == 200
            bill = upstream.final_bill()["total_nusd"]
    ledger = Ledger.open(url, create=False, read_only=True)
    (balance,) = (each for each in ledger.balances(0.0, ended=True).values() if each.spent_nusd)
    assert (bill <= balance.committed_nusd, ledger.verify()) == (True, []), "what the first did not report is held for it"
    ledger.close()
    assert "secret" not in first.error + second.error
