"""What a month has cost, of a ledger's file. If this fails, the table that goes to whoever pays does not add up."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stepdown.budget.account import Binding
from stepdown.cli.app import stepdown
from stepdown.ledger import Ledger
from stepdown.model.sync import Counter, SyncRequest

DAY = 20_770
"""2026-11-13."""


@pytest.fixture
def ledger_file(tmp_path: Path) -> Path:
    """Two routes on two days; one request of a model without a price."""
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(path, create=True)
    start_s = DAY * 86_400
    ledger.bind([Binding("shop/team", start_s - 86_400, start_s + 864_000, 10**10, True, frozenset({"shop/chat"}))], start_s)
    counters = tuple(
        Counter(
            route=route,
            model=model,
            request_class="default",
            day=DAY + later,
            requests=4,
            successes=3,
            input_tokens=1000,
            output_tokens=200,
            cost_nusd=cost,
            unpriced=int(not cost),
        )
        for route, model, later, cost in (
            ("shop/chat", "Qwen3-8B", 0, 1_000_000_000),
            ("shop/chat", "Qwen3-14B", 1, 2_000_000_001),
            ("hunt/search", "GLM-5", 1, 0),
        )
    )
    ledger.sync([SyncRequest(instance="i", fleet="shop/default", seq=1, counters=counters)], start_s + 90_000)
    ledger.close()
    return path


def month(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(stepdown, ["report", "month", "--ledger", str(file), "--month", "2026-11", *arguments])


def test_a_ledger_s_month_adds_up_to_the_nano_dollar(ledger_file: Path) -> None:
    found = json.loads(month(ledger_file, "-o", "json").output)
    assert [(each["route"], each["model"], each["costUSD"]) for each in found["rows"]] == [
        ("shop/chat", "Qwen3-14B", "2.000000001"),
        ("shop/chat", "Qwen3-8B", "1.00"),
        ("hunt/search", "GLM-5", "0.00"),
    ]
    assert (found["total"]["costUSD"], found["total"]["requests"], found["total"]["unpricedRequests"]) == ("3.000000001", 12, 1)
    days = json.loads(month(ledger_file, "--by", "day", "-o", "json").output)["rows"]
    assert [(each["day"], each["costUSD"]) for each in days] == [("2026-11-13", "1.00"), ("2026-11-14", "2.000000001")]


def test_the_table_says_what_it_could_not_count(ledger_file: Path) -> None:
    """A request that counts as nothing because nobody knows its price must not look cheap."""
    text = month(ledger_file, "--by", "namespace").output
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:5]}
    assert (rows["shop"][:2], rows["shop"][-3:]) == (["8", "2"], ["3.000000", "100.0", "%"])
    assert rows["total"][0] == "12"
    assert "1 request was answered by a model without a price: no cost is counted" in text


def test_an_empty_month_says_so(ledger_file: Path) -> None:
    other = CliRunner().invoke(stepdown, ["report", "month", "--ledger", str(ledger_file), "--month", "2026-10"])
    assert other.exit_code == 0 and f"There was no traffic in 2026-10 in {ledger_file}." in other.output
