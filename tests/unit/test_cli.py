"""The command line where it needs no running proxy. If these fail, a script that trusts an exit code or a figure is misled."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from stepdown.budget.account import Binding
from stepdown.cli.app import COMMANDS, stepdown
from stepdown.ledger import Ledger
from stepdown.model.sync import Counter, SyncRequest

NOVEMBER_DAY = 20_770
"""2026-11-13."""


def call(*arguments: str) -> Result:
    return CliRunner().invoke(stepdown, arguments, prog_name="stepdown")


def test_a_key_is_256_bits_and_its_hash_is_what_a_route_takes() -> None:
    """A hash of anything but the key as the caller sends it locks the caller out."""
    first, second = (yaml.safe_load(call("key", "new", "-o", "yaml").output) for _ in range(2))
    assert first["key"] != second["key"]
    assert len(first["key"].removeprefix("sd_")) == 43
    assert first["apiKeySHA256"] == hashlib.sha256(first["key"].encode()).hexdigest()
    text = call("key", "new").output
    (snippet,) = yaml.safe_load(text[text.index("spec:") :])["spec"]["callers"]
    key = text.split()[1]
    assert snippet == {"apiKeySHA256": hashlib.sha256(key.encode()).hexdigest()}


def test_the_quoted_savings_come_out_to_the_cent() -> None:
    """The table that people quote is how they check that the arithmetic is right."""
    result = call("report", "savings")
    assert result.exit_code == 0
    rows = [line.split() for line in result.output.splitlines()[1:5]]
    assert rows == [
        ["MVP", "5M", "$50.00", "$1.25", "97.5", "%"],
        ["Beta", "50M", "$500.00", "$12.50", "97.5", "%"],
        ["Launch", "500M", "$5,000.00", "$125.00", "97.5", "%"],
        ["Growth", "5B", "$50,000.00", "$1,250.00", "97.5", "%"],
    ]
    machine = json.loads(call("report", "savings", "-o", "json").output)
    assert machine["scenarios"][3]["savedUSD"] == "48750.00"


def test_a_lost_ledger_is_accepted_in_words_and_only_an_empty_one(tmp_path: Path) -> None:
    """It forgets what was spent: never by accident, never over a ledger that knows, and while the operator runs."""
    path = tmp_path / "ledger.db"
    assert "a new, empty ledger" in call("ledger", "init", str(path)).output
    again = call("ledger", "init", str(path))
    assert (again.exit_code, "there is a ledger already" in again.output) == (1, True)
    keeper = Ledger.open(path, create=False)
    keeper.take_epoch("stepdown-0")
    keeper.guard()
    assert keeper.begin({"shop/team@0": 5, "epoch": 9}, 100.0).lost == 1
    accepted = call("ledger", "init", "--accept-loss", str(path))
    assert (accepted.exit_code, "the loss is accepted" in accepted.output) == (0, True)
    assert call("ledger", "init", "--accept-loss", str(path)).exit_code == 0, "said twice is said once"
    keeper.set_marks(keeper.needed_marks())
    assert keeper.standstill
    keeper.sync([SyncRequest(instance="a", fleet="shop/default", seq=1)], 100.0)
    assert keeper.standstill == ""
    keeper.close()
    other = tmp_path / "other.db"
    ledger = Ledger.open(other, create=True)
    ledger.sync([SyncRequest(instance="a", fleet="shop/default", seq=1)], 100.0)
    ledger.close()
    refused = call("ledger", "init", "--accept-loss", str(other))
    assert (refused.exit_code, "the ledger is not empty" in refused.output) == (1, True)
    assert call("ledger", "init", "--accept-loss", str(tmp_path / "none" / "x.db")).exit_code == 3


@pytest.fixture
def ledger_file(tmp_path: Path) -> Path:
    """A ledger with one request of 1,000 uncached input, 500 cached and 2,000 output tokens on record."""
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(path, create=True)
    start_s = NOVEMBER_DAY * 86_400
    routes = frozenset({"default/chat"})
    ledger.bind([Binding("default/team", start_s - 86_400, start_s + 864_000, 10**9, True, routes)], start_s)
    counter = Counter(
        route="default/chat",
        model="DeepSeek V4 Flash",
        request_class="default",
        day=NOVEMBER_DAY,
        requests=2,
        successes=1,
        input_tokens=1000,
        cached_input_tokens=500,
        output_tokens=2000,
        cost_nusd=770_000,
    )
    ledger.sync([SyncRequest(instance="i", fleet="default/default", seq=1, counters=(counter,))], start_s + 60)
    ledger.close()
    return path


def test_real_traffic_is_compared_with_the_baseline(ledger_file: Path) -> None:
    """A saving that counts a price nobody knows is a lie in a budget meeting."""
    result = call("report", "savings", "--ledger", str(ledger_file), "--month", "2026-11", "-o", "json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    (row,) = report["rows"]
    assert (row["route"], row["model"], row["requests"], row["tokens"]) == ("default/chat", "DeepSeek V4 Flash", 2, 3500)
    assert (row["costUSD"], row["baselineUSD"], row["usdPerSuccess"]) == ("0.00077", "0.02", "0.00077")
    assert row["lowerBound"] and "input tokens are counted as free" in report["notes"][0]
    table = call("report", "savings", "--ledger", str(ledger_file), "--month", "2026-11").output
    assert "$0.000770" in table and "96.1 %" in table
    assert "no traffic in 2026-10" in call("report", "savings", "--ledger", str(ledger_file), "--month", "2026-10").output


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("report", "savings", "--baseline", "GPT-4"), 1, "the nearest: GPT-4o"),
        (("report", "savings", "--model", "GLM-5"), 1, "output price is not known"),
        (("report", "savings", "--month", "2026-11"), 2, "--month needs --ledger"),
        (("report", "savings", "--ledger", "LEDGER", "--month", "11/2026"), 2, "write one such as 2026-11"),
        (("report", "savings", "--ledger", "/nowhere/ledger.db"), 3, "there is no ledger"),
        (("ledger", "verify", "/nowhere/ledger.db"), 3, "there is no ledger"),
        (("key", "old"), 2, "No such command"),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_what_is_wrong_is_said_in_one_block_with_its_exit_code(
    ledger_file: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    """A script must be able to tell a typo from a ledger that cannot be read; a person must not read a traceback."""
    result = call(*(str(ledger_file) if each == "LEDGER" else each for each in arguments))
    assert result.exit_code == code, result.output
    assert says in result.output and "Traceback" not in result.output


def test_a_ledger_is_verified_and_a_foreign_file_is_refused(ledger_file: Path, tmp_path: Path) -> None:
    """`verify` must never pass what is not a ledger."""
    good = call("ledger", "verify", str(ledger_file))
    assert good.exit_code == 0 and "1 account; every sum agrees" in good.output
    (tmp_path / "notes.db").write_text("dear diary")
    bad = call("ledger", "verify", str(tmp_path / "notes.db"))
    assert bad.exit_code == 3 and (tmp_path / "notes.db").read_text() == "dear diary"


def test_every_command_is_there_and_completion_knows_it() -> None:
    """A command that cannot be imported is found by a user, else."""
    help_text = call("--help").output
    assert all(f"\n  {name} " in help_text for name in COMMANDS)
    for shell in ("bash", "zsh", "fish"):
        assert "_STEPDOWN_COMPLETE" in call("completion", shell).output
    assert call("version").output.startswith("stepdown ")


def test_completion_and_help_import_nothing_heavy() -> None:
    """Completion runs at every press of Tab."""
    code = (
        "import sys; from stepdown.cli.app import stepdown; import click.testing as t; "
        "r = t.CliRunner().invoke(stepdown, ['key', 'new']); assert r.exit_code == 0, r.output; "
        "print([m for m in ('pydantic', 'sqlalchemy', 'rich', 'yaml', 'uvloop') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
