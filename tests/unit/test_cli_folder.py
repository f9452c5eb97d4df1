"""Commands that answer questions about a folder. If these fail, CI passes a broken policy, or a person trusts a wrong rung."""

import io
import json
import logging
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from stepdown.budget.account import Binding
from stepdown.cli.app import stepdown
from stepdown.ledger import Ledger
from stepdown.model.sync import Counter, LeaseReport, SyncRequest
from stepdown.sync import log
from stepdown.sync.clock import now_s

SAMPLES = Path(__file__).parents[2] / "manifests" / "samples"
HEAD = "apiVersion: stepdown.dev/v1alpha1\n"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(stepdown, arguments, prog_name="stepdown")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no ./stepdown.db lies about."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nearly_spent(tmp_path: Path) -> Path:
    """A ledger in which 96 % of the samples' five cents are spent."""
    from stepdown.budget.months import month_at

    path = tmp_path / "spent.db"
    now = now_s()
    month = month_at(now, "UTC")
    routes = frozenset(f"stepdown-demo/{name}" for name in ("classify", "analyze", "router"))
    binding = Binding("stepdown-demo/demo", month.start_s, month.end_s, 50_000_000, True, routes)
    ledger = Ledger.open(path, create=True)
    ledger.bind([binding], now)
    report = LeaseReport(account=binding.account, granted=0, returned=0, consumed=48_000_000, estimated=0, reserved=0, want=0)
    ledger.sync([SyncRequest(instance="i", fleet="stepdown-demo/default", seq=1, leases=(report,))], now)
    ledger.close()
    return path


def test_the_samples_are_valid() -> None:
    """They are what everybody copies."""
    result = call("validate", "-f", str(SAMPLES))
    assert result.exit_code == 0, result.output
    assert "6 objects: all valid." in result.output


def test_validate_names_every_mistake_with_its_line_and_ends_with_1(tmp_path: Path) -> None:
    """What is found one at a time takes an afternoon; what CI lets through takes a night."""
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "a.yaml").write_text(
        f"{HEAD}kind: ModelRoute\nmetadata: {{name: typo}}\nspec:\n  models:\n    default: qwen3-8b\n"
        "    fallbacks:\n    - qwen3-32\n"
        f"---\n{HEAD}kind: ModelRoute\nmetadata: {{name: blind}}\nspec:\n  models: {{default: qwen3-8b}}\n"
        "  requirements: {capabilities: [vision]}\n"
        f'---\n{HEAD}kind: SpendBudget\nmetadata: {{name: b}}\nspec:\n  monthlyLimitUSD: "0"\n  stpes: []\n'
    )
    (folder / "b.yaml").write_text("kind: [\n")
    result = call("validate", "-f", str(folder))
    assert result.exit_code == 1
    lines = result.output.splitlines()
    for at, says in ((8, "'Qwen/Qwen3-32B'"), (14, "lacks the capability vision"), (22, "did you mean 'steps'")):
        assert any(line.startswith(f"{folder}/a.yaml:{at}") and says in line for line in lines), (at, result.output)
    assert any(line.startswith(f"{folder}/b.yaml:2") and "not YAML" in line for line in lines)
    machine = json.loads(CliRunner().invoke(stepdown, ["validate", "-f", str(folder), "-o", "json"]).stdout)
    assert machine["valid"] is False and {each["line"] for each in machine["findings"]} >= {8, 14, 22}


def test_explain_shows_the_ladder_the_rung_in_force_and_why_not_the_others(nearly_spent: Path) -> None:
    """Why did my request get this model? The answer must be the plan's own."""
    untouched = json.loads(call("explain", "analyze", "-f", str(SAMPLES), "-o", "json").output)
    assert untouched["route"] == "stepdown-demo/analyze"
    default = untouched["classes"]["default"]
    assert (default["inForce"]["model"], default["reason"], default["hidden"]) == ("DeepSeek V4 Flash", "Wanted", [])
    assert any(each["model"] == "GPT-4o" or "maxOutputUSDPerMTok" in each["reason"] for each in untouched["rejected"])
    stepped = json.loads(call("explain", "analyze", "-f", str(SAMPLES), "--ledger", str(nearly_spent), "-o", "json").output)
    default = stepped["classes"]["default"]
    assert (default["inForce"]["tier"], default["reason"], default["maxTier"]) == ("UltraBudget", "StepInForce", "UltraBudget")
    assert [each["model"] for each in default["hidden"]] == ["DeepSeek V4 Flash"]
    text = call("explain", "router:critical", "-f", str(SAMPLES), "--ledger", str(nearly_spent)).output
    assert "96.0 % used, step at 95 %: StepDown UltraBudget" in text
    assert "Class critical: DeepSeek-R1 (Flagship), as wanted" in text and "Class default" not in text
    assert "Not on the default ladder" in text


def test_explain_says_what_is_reserved_beyond_the_worst_case(nearly_spent: Path) -> None:
    """A request that would fit is stepped down: by an upstream that once ignored max_tokens, and nothing else would say so."""
    ledger, now = Ledger.open(nearly_spent, create=False), now_s()
    longer = Counter(
        route="stepdown-demo/analyze",
        model="DeepSeek V4 Flash",
        request_class="default",
        day=int(now // 86_400),
        requests=1,
        cost_nusd=48_000_000,
        overrun_nusd=1_200_000,
    )
    ledger.sync([SyncRequest(instance="i", fleet="stepdown-demo/default", seq=2, counters=(longer,))], now)
    ledger.close()
    command = ("explain", "analyze", "-f", str(SAMPLES), "--ledger", str(nearly_spent))
    rungs = json.loads(call(*command, "-o", "json").output)["classes"]["default"]
    assert [each["marginUSD"] for each in (*rungs["hidden"], rungs["inForce"])] == ["0.0012", "0.00"]
    says = "DeepSeek V4 Flash: $0.0012 a request, since it has answered more than max_tokens allows"
    assert says in " ".join(call(*command).output.split())
    assert "Reserved beyond" not in call("explain", "analyze", "-f", str(SAMPLES)).output


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("explain", "rooter", "-f", "SAMPLES"), 1, "did you mean 'router'"),
        (("explain", "router:urgent", "-f", "SAMPLES"), 2, "is not a class of requests"),
        (("explain", "router", "-f", "/nowhere"), 2, "no such file or folder"),
        (("status", "-f", "SAMPLES", "--proxy", "a/b"), 2, "name one of them"),
        (("status", "-f", "SAMPLES", "--ledger", "missing.db"), 3, "there is no ledger"),
        (("status", "-f", "."), 1, "no object of stepdown.dev"),
        (("run", "-f", "SAMPLES", "--listen", "8080"), 2, "write HOST:PORT"),
        (("run", "-f", "SAMPLES", "--upstream", "global-apis.com"), 2, "is not a base URL"),
    ],
)
def test_a_wrong_call_is_said_in_one_block(arguments: tuple[str, ...], code: int, says: str) -> None:
    """A traceback tells a person nothing."""
    result = call(*(str(SAMPLES) if each == "SAMPLES" else each for each in arguments))
    assert (result.exit_code, says in result.output, "Traceback" in result.output) == (code, True, False), result.output


def test_status_shows_what_kubectl_would(nearly_spent: Path) -> None:
    """Money and model of every object in one look."""
    result = call("status", "-f", str(SAMPLES), "--ledger", str(nearly_spent))
    assert result.exit_code == 0, result.output
    sections = {part.splitlines()[0]: part for part in result.output.split("\n\n") if part.strip()}
    assert list(sections) == ["RoutingProxy", "SpendBudget", "Money, in the ledger", "ModelRoute", "ModelCatalog"]
    assert sections["Money, in the ledger"].splitlines()[2].split()[2:] == ["0.048", "0.00", "0.00", "0.002", "0.05", "96.0"]
    budget = sections["SpendBudget"].splitlines()[2].split()
    assert budget[3:7] == ["UltraBudget", "0.048", "0.05", "96"]
    analyze = next(line.split() for line in sections["ModelRoute"].splitlines() if " analyze " in line)
    assert "UltraBudget" in analyze and "True" in analyze
    objects = yaml.safe_load(call("status", "-f", str(SAMPLES), "--ledger", str(nearly_spent), "-o", "yaml").output)
    kinds = [item["kind"] for item in objects["items"]]
    assert kinds == ["RoutingProxy", "SpendBudget", "ModelRoute", "ModelRoute", "ModelRoute", "ModelCatalog"]
    assert objects["items"][1]["status"]["spentUSD"] == "0.048"


def test_status_without_a_ledger_says_so() -> None:
    """Zeros must not be taken for news."""
    assert "No ledger" in call("status", "-f", str(SAMPLES)).output


def test_log_lines_are_one_line_each_and_carry_their_values() -> None:
    """A message with a line break would split a record; a value that cannot be parsed cannot be searched."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        for log_format in ("logfmt", "json"):
            stream = io.StringIO()
            log.setup(log_format, stream)
            log.warning('a "sentence"\nin two', event="problem", file="a b.yaml", line=3, empty="")
            (line,) = stream.getvalue().splitlines()
            if log_format == "json":
                found = json.loads(line)
                assert (found["level"], found["event"], found["line"]) == ("warning", "problem", 3)
            else:
                assert line.endswith('level=warning msg="a \\"sentence\\"\\nin two" event=problem file="a b.yaml" line=3')
    finally:
        root.handlers[:], root.level = before
