"""`stepdown statement` and `stepdown reconcile` as finance runs them. If one fails, the books do not close."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from stepdown.budget.account import Binding
from stepdown.cli.app import stepdown
from stepdown.ledger import Ledger
from stepdown.model.config import account_id
from stepdown.model.money import usd_to_nusd
from stepdown.model.sync import Ask, Counter, LeaseReport, SyncRequest
from tests.postgres import Server

DAY_S = 86_400
FIRST = 20_727
"""2026-10-01, and the month is over: the tests run later."""
START_S, END_S = FIRST * DAY_S, (FIRST + 31) * DAY_S
MONTH = "2026-10"
TEAM = account_id("shop/team", START_S)
USD = 1_000_000_000

STATEMENT = """\
Statement of 2026-10: 2026-10-01 to 2026-10-31 in UTC, both included
PURCHASE ORDER  NAMESPACE  ROUTE      MODEL      CLASS    BUDGET     KIND          REQUESTS    INPUT  CACHED  OUTPUT    USD
4711            shop       shop/chat  Qwen3-32B  default             metered             40  100,000   5,000  20,000   9.50
4711            shop       shop/chat  Qwen3-32B  default             estimated                                         0.50
4711            shop                                      shop/team  unreconciled                                      3.00
total                                                                                                                 13.00

metered: by the usage that the upstream reported.
estimated: at the reservation, for want of usage.
unreconciled: held for proxies that were lost: what the upstream may still bill.

Budgets of the month
BUDGET     FROM                  UNTIL                 SPENT $  UNRECONCILED $  IN THE LINES $  DIFFERENCE $
shop/team  2026-10-01T00:00:00Z  2026-11-01T00:00:00Z    10.00            3.00           13.00          0.00
"""

RECONCILED = """\
Invoice of 2026-10: 2026-10-01 to 2026-10-31 in UTC
MODEL      BILLED $  LEDGER $  OF IT ESTIMATED $  DIFFERENCE $
Qwen3-32B     11.20     10.00               0.50          1.20
total         11.20     10.00               0.50          1.20

What was unreconciled
BUDGET     HELD $  CHARGED $  RELEASED $  STILL HELD $
shop/team    3.00       1.20       1.795         0.005

Bill and ledger agree, to what the bill is rounded by ($0.005).
$0.005 stays held for what the bill may have been rounded by.
Instance gone is closed for good: what it held is settled here.
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """October: ten dollars on one route, half of one without usage, and a proxy that is gone with three."""
    path = tmp_path / "ledger.db"
    made = Ledger.open(path, create=True)
    now_s = START_S + 10.5 * DAY_S
    made.bind([Binding("shop/team", START_S, END_S, 100 * USD, True, frozenset({"shop/chat"}))], now_s)
    made.book({"shop/chat": "4711"}, FIRST + 2)
    ask = Ask(id=1, rungs=({TEAM: 13 * USD},))
    made.sync([SyncRequest(instance="gone", fleet="shop/default", seq=1, asks=(ask,))], now_s)
    spent = Counter(
        route="shop/chat",
        model="Qwen3-32B",
        request_class="default",
        day=FIRST + 10,
        requests=40,
        successes=38,
        input_tokens=100_000,
        cached_input_tokens=5_000,
        output_tokens=20_000,
        cost_nusd=10 * USD,
        estimated_nusd=USD // 2,
    )
    numbers = {"returned": 0, "consumed": 10 * USD, "estimated": USD // 2, "reserved": 2 * USD, "want": 0}
    report = LeaseReport(account=TEAM, granted=13 * USD, **numbers)
    made.sync([SyncRequest(instance="gone", fleet="shop/default", seq=2, leases=(report,), counters=(spent,))], now_s)
    made.sync([SyncRequest(instance="works", fleet="shop/default", seq=1)], now_s + 2 * DAY_S)
    made.close()
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(stepdown, [str(each) for each in arguments])


def reconcile(ledger: Path, bill: str, *more: str) -> Result:
    file = ledger.parent / "bill.csv"
    file.write_text(bill)
    return call("reconcile", "--ledger", ledger, "--invoice", file, "--month", MONTH, *more)


def state(ledger: Path) -> tuple[Any, ...]:
    """All that a settlement could have changed."""
    opened = Ledger.open(ledger, create=False, read_only=True)
    try:
        assert opened.verify() == []
        return opened.balances(0.0, ended=True)[TEAM], opened.instances(closed=True)
    finally:
        opened.close()


BILL = "model,requests,amount,currency\nQwen/Qwen3-32B,,11.20,USD\nTOTAL,,11.20,USD\n"


def test_a_statement_for_people(ledger: Path) -> None:
    """Every sum is there, and every sum that is not certain by its name."""
    assert call("statement", "--ledger", ledger, "--month", MONTH).stdout == STATEMENT
    assert "no traffic in 2026-09" in call("statement", "--ledger", ledger, "--month", "2026-09").stdout


def test_a_statement_for_a_spreadsheet_adds_up(ledger: Path) -> None:
    """Whoever sums the last column has the total, to the nano-dollar; a total among the lines would double it."""
    text = call("statement", "--ledger", ledger, "--month", MONTH, "-o", "csv", "--by", "route,day").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["kind"], row["route"], row["day"], row["usd"]) for row in rows] == [
        ("metered", "shop/chat", "2026-10-11", "9.50"),
        ("estimated", "shop/chat", "2026-10-11", "0.50"),
        ("unreconciled", "", "", "3.00"),
    ]
    machine = json.loads(call("statement", "--ledger", ledger, "--month", MONTH, "-o", "json").stdout)
    assert sum(usd_to_nusd(row["usd"]) for row in rows) == usd_to_nusd(machine["totalUSD"]) == 13 * USD
    assert sum(usd_to_nusd(each["usd"]) for each in machine["lines"]) == 13 * USD
    assert (machine["budgets"][0]["differenceUSD"], machine["lines"][0]["purchaseOrder"]) == ("0.00", "4711")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--by", "colour"), 2, "'colour' is not a list of namespace, route, model, class, day"),
        (("--month", "2026-13"), 2, "write one such as 2026-11"),
        (("-n", "shop"), 2, "leave out one of them"),
        (("--ledger", "/nowhere/ledger.db"), 3, "there is no ledger"),
    ],
)
def test_a_statement_that_cannot_be_made_says_why(ledger: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    """A script tells by the code, a person by the sentence."""
    result = call("statement", "--ledger", ledger, *arguments)
    assert result.exit_code == code and message in result.stderr.replace("\n", " ")


def test_an_invoice_settles_what_was_lost(ledger: Path) -> None:
    """What the bill has beyond the counters is charged, the rest is free, and the statement's sum is the bill's."""
    result = reconcile(ledger, BILL)
    assert (result.exit_code, result.stdout) == (0, RECONCILED), result.output
    machine = json.loads(call("statement", "--ledger", ledger, "--month", MONTH, "-o", "json").stdout)
    assert machine["byKindUSD"] == {
        "metered": "9.50",
        "estimated": "0.50",
        "unmetered": "0.00",
        "invoiced": "1.20",
        "unreconciled": "0.005",
    }
    assert machine["budgets"][0]["differenceUSD"] == "0.00"
    before = state(ledger)
    again = reconcile(ledger, BILL)
    assert (again.exit_code, "Nothing was changed" in again.stdout) == (0, True)
    assert state(ledger) == before
    corrected = reconcile(ledger, BILL.replace("11.20", "12.000000000"))
    assert "It takes the place of the invoice of 2026-10" in corrected.stdout
    assert state(ledger)[0].invoiced_nusd == 2 * USD


def test_a_dry_run_and_a_program_s_answer(ledger: Path) -> None:
    """A pipeline looks at what would come of it, and asks a person."""
    before = state(ledger)
    found = json.loads(reconcile(ledger, BILL, "--dry-run", "-o", "json").stdout)
    assert (found["dryRun"], found["changed"], found["agrees"]) == (True, False, True)
    assert found["accounts"] == [
        {"account": TEAM, "heldUSD": "3.00", "chargedUSD": "1.20", "releasedUSD": "1.795", "unreconciledUSD": "0.005"}
    ]
    assert state(ledger) == before


@pytest.mark.parametrize(
    ("bill", "message"),
    [
        (BILL.replace("11.20", "20.00"), "$7.00 was billed for 2026-10 beyond all that the ledger has metered or held"),
        (BILL.replace("11.20", "8.00"), "$1.495 was metered for 2026-10 and not billed"),
    ],
)
def test_a_difference_that_nobody_can_explain_is_named_and_ends_with_1(ledger: Path, bill: str, message: str) -> None:
    """Somebody else spends with the key, or a price is wrong: a job must not pass over it."""
    result = reconcile(ledger, bill)
    assert result.exit_code == 1 and message in result.stderr


@pytest.mark.parametrize(
    ("bill", "more", "message"),
    [
        (BILL.replace("Qwen3-32B", "Qwen3-33B"), (), "line 2: the model 'Qwen/Qwen3-33B' is in no catalog.*Qwen3-32B"),
        (BILL.replace("USD", "EUR", 1), (), "line 2: the currency is 'EUR'"),
        (
            "model,amount,currency\nQwen/Qwen3-32B,5.60,USD\nQwen3-32B,5.60,USD\n",
            (),
            "line 3: 'Qwen3-32B' is 'Qwen3-32B', and so is 'Qwen/Qwen3-32B' of line 2 with the same amount: .* add the two up",
        ),
        (BILL + "Qwen3-8B,,1,USD\n", (), "line 4: there is a line after the total of line 3"),
        (BILL[:-8], (), "the file may be cut off"),
        (BILL, ("--through", "2026-11-01"), "is not in the month that --month names"),
        (BILL, ("--through", "soon"), "'soon' is not a day"),
        ("model,day,amount,currency\nQwen3-32B,2026-10-20,1,USD\n", ("--through", "2026-10-19"), "line 2: 2026-10-20 is after"),
    ],
)
def test_a_bill_that_cannot_be_used_changes_nothing(ledger: Path, bill: str, more: tuple[str, ...], message: str) -> None:
    """Half of a settlement is worse than none; the message names the line and what to do."""
    before = state(ledger)
    result = reconcile(ledger, bill, *more)
    assert result.exit_code in (1, 2)
    assert re.search(message, " ".join(result.stderr.split()))
    assert state(ledger) == before


def test_a_ledger_that_cannot_be_used_is_refused(ledger: Path) -> None:
    """A foreign file must not be written into."""
    foreign = ledger.parent / "foreign.db"
    foreign.write_bytes(b"no ledger at all" * 100)
    assert reconcile(foreign, BILL).exit_code == 3
    assert foreign.read_bytes() == b"no ledger at all" * 100


def test_no_bill_is_settled_in_a_ledger_that_was_moved(ledger: Path) -> None:
    """What is settled in an older copy is settled nowhere, and the administrator believes that it is."""
    assert call("ledger", "import", ledger, ledger.parent / "new.db").exit_code == 0
    refused = reconcile(ledger, BILL, "--dry-run")
    assert (refused.exit_code, "was moved to" in refused.stderr) == (3, True)
    assert reconcile(ledger.parent / "new.db", BILL).exit_code == 0


def test_an_invoice_is_read_while_the_keeper_works(ledger: Path) -> None:
    """Nobody stops the operator to close a month; and what is settled holds for the next message."""
    keeper = Ledger.open(ledger, create=False)
    try:
        keeper.take_epoch("stepdown-0")
        assert reconcile(ledger, BILL).exit_code == 0
        answer = keeper.sync([SyncRequest(instance="gone", fleet="shop/default", seq=3)], START_S + 13 * DAY_S)
        assert answer[0].verdict == "fenced"
        assert keeper.balances(START_S + 13 * DAY_S)[TEAM].invoiced_nusd == usd_to_nusd("1.20")
    finally:
        keeper.close()


def test_a_folder_says_the_purchase_orders_that_an_older_ledger_does_not_know(ledger: Path) -> None:
    """Who upgrades in mid-month and adds the label must not book by hand."""
    opened = Ledger.open(ledger, create=False)
    opened.sync(
        [
            SyncRequest(
                instance="works",
                fleet="shop/default",
                seq=2,
                counters=(Counter(route="shop/new", model="m", request_class="default", day=FIRST, cost_nusd=USD),),
            )
        ],
        START_S + 13.0 * DAY_S,
    )
    opened.close()
    folder = ledger.parent / "policy"
    folder.mkdir()
    (folder / "route.yaml").write_text(
        "apiVersion: stepdown.dev/v1alpha1\nkind: ModelRoute\n"
        "metadata: {name: new, namespace: shop, labels: {stepdown.dev/purchase-order: '4712'}}\n"
        "spec: {models: {default: Qwen3-32B}}\n"
    )
    command = ("statement", "--ledger", ledger, "--month", MONTH, "-o", "json", "--by", "route")
    lines = {line["route"]: line["purchaseOrder"] for line in json.loads(call(*command, "-f", folder).stdout)["lines"]}
    assert (lines["shop/new"], lines["shop/chat"]) == ("4712", "4711")


def test_every_report_is_made_of_a_database_as_of_a_file(ledger: Path, postgres: Server) -> None:
    """Who moved the ledger into PostgreSQL must go on seeing what is spent; and no password belongs on a command line."""
    url = postgres.database()
    moved = call("ledger", "import", ledger, url)
    assert moved.exit_code == 0, moved.output
    of_file = call("statement", "--ledger", ledger, "--month", MONTH, "-o", "json").stdout
    assert call("statement", "--ledger", url, "--month", MONTH, "-o", "json").stdout == of_file
    month = call("report", "month", "--ledger", url, "--month", MONTH, "-o", "json")
    assert json.loads(month.stdout)["total"]["costUSD"] == "10.00"
    file = ledger.parent / "bill.csv"
    file.write_text(BILL)
    settled = call("reconcile", "--ledger", url, "--invoice", file, "--month", MONTH)
    assert (settled.exit_code, settled.stdout) == (0, RECONCILED), settled.output
    refused = call("statement", "--ledger", "postgresql://stepdown:secret@db/ledger", "--month", MONTH)
    assert refused.exit_code == 2 and "a password on the command line" in " ".join(refused.stderr.split())
