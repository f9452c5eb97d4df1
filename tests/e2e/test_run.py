"""`stepdown run` as a process. If these fail, a person who tries a policy loses a stream, a change, or the money's record."""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.process import START_S, Reply, RunProcess
from tests.upstream import SimulatorProcess

HEAD = "apiVersion: stepdown.dev/v1alpha1\n"
FLASH, QWEN = "deepseek-v4-flash", "Qwen/Qwen3-32B"


def route(name: str, model: str = "deepseek-v4-flash", more: str = "") -> str:
    return (
        f"---\n{HEAD}kind: ModelRoute\nmetadata: {{name: {name}, labels: {{team: a}}}}\n"
        f"spec:\n  models: {{default: {model}}}\n  parameters: {{maxTokens: 200}}\n{more}"
    )


def budget(usd: str, steps: str = "") -> str:
    return f'---\n{HEAD}kind: SpendBudget\nmetadata: {{name: team}}\nspec:\n  monthlyLimitUSD: "{usd}"\n{steps}'


@pytest.fixture
def upstream() -> Iterator[SimulatorProcess]:
    with SimulatorProcess("--output", "150", "200") as simulator:
        yield simulator


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "policy"
    path.mkdir()
    (path / "routes.yaml").write_text(route("chat"))
    (path / "budget.yaml").write_text(budget("1.00"))
    return path


def run(folder: Path, upstream: SimulatorProcess, *arguments: str) -> RunProcess:
    return RunProcess(folder, folder.parent / "ledger.db", *arguments, upstream=upstream.url)


def served_by(process: RunProcess, model: str, route_name: str = "chat") -> Reply:
    """Asks until that model answers: a change has a second."""
    until_s = time.monotonic() + START_S
    while True:
        reply = process.chat(route_name)
        if reply.model == model or time.monotonic() > until_s:
            assert (reply.status, reply.model) == (200, model), reply.body
            return reply
        time.sleep(0.02)


def spent_nusd(folder: Path) -> int:
    from stepdown.ledger import Ledger

    ledger = Ledger.open(folder.parent / "ledger.db", create=False, read_only=True)
    try:
        assert ledger.verify() == []
        return sum(balance.spent_nusd for balance in ledger.balances(0.0, ended=True).values())
    finally:
        ledger.close()


def test_a_changed_file_is_in_force_and_the_running_stream_goes_on(folder: Path, upstream: SimulatorProcess) -> None:
    """An edit that cuts streams is an outage; one that needs a restart is one too."""
    upstream.fault("slow", model="deepseek-v4-flash", stream=True, per_chunk_s=0.1)
    with run(folder, upstream) as process:
        stream = process.stream("chat")
        first = stream.next_event()
        assert (stream.status, json.loads(first)["model"]) == (200, FLASH)
        (folder / "routes.yaml").write_text(route("chat", "Qwen/Qwen3-32B"))
        served_by(process, QWEN)
        (folder / "more.yaml").write_text(route("extra"))
        served_by(process, FLASH, "extra")
        (folder / "more.yaml").unlink()
        process.wait_for("policy", lambda line: line["routes"] == 1)
        events = [first, *stream.rest()]
        assert events[-1] == "[DONE]"
        text = "".join(c["delta"].get("content") or "" for each in events[:-1] for c in json.loads(each)["choices"])
        assert len(text) > 100


def test_a_bad_file_is_named_and_what_it_said_stays_in_force(folder: Path, upstream: SimulatorProcess) -> None:
    """A typo saved at noon must not take the route, or its budget, away."""
    with run(folder, upstream) as process:
        served_by(process, FLASH)
        (folder / "routes.yaml").write_text(route("chat", "Qwen/Qwen3-32B") + "spec: again\n")
        line = process.wait_for("problem")
        assert line["file"] == str(folder / "routes.yaml") and line["line"] > 1 and "twice" in line["msg"]
        assert process.chat("chat").model == FLASH
        (folder / "routes.yaml").write_text(route("chat", "qwen3-32"))
        line = process.wait_for("problem", lambda line: "qwen3-32'" in line["msg"])
        assert "ModelRoute default/chat" in line["msg"] and "Qwen/Qwen3-32B" in line["msg"]
        assert process.chat("chat").model == FLASH
        (folder / "budget.yaml").write_text(budget("-5"))
        line = process.wait_for("problem", lambda line: "monthlyLimitUSD" in line["msg"])
        assert line["file"] == str(folder / "budget.yaml")
        assert process.chat("chat").status == 200
        (folder / "routes.yaml").write_text(route("chat", "Qwen/Qwen3-32B"))
        served_by(process, QWEN)


def test_after_a_restart_a_budget_in_a_bad_file_still_binds(folder: Path, upstream: SimulatorProcess) -> None:
    """The ledger remembers what was accepted: a restart beside a typo must not lift the ceiling."""
    (folder / "budget.yaml").write_text(budget("0.000001"))
    with run(folder, upstream) as process:
        assert process.chat("chat").status == 429
    (folder / "budget.yaml").write_text(budget("0.000001") + "a: [\n")
    with run(folder, upstream) as process:
        process.wait_for("problem")
        assert process.chat("chat").status == 429


def test_a_first_start_serves_what_is_good(folder: Path, upstream: SimulatorProcess) -> None:
    """One team's mistake must not keep every other team's routes down."""
    (folder / "bad.yaml").write_text("kind: [\n")
    with run(folder, upstream) as process:
        assert process.wait_for("problem")["file"] == str(folder / "bad.yaml")
        assert process.chat("chat").status == 200


@pytest.mark.parametrize("content", ["kind: [\n", "# nothing\n", route("chat").replace("models", "modules")])
def test_a_start_where_nothing_is_valid_says_so(tmp_path: Path, content: str) -> None:
    """A proxy that runs and knows no route looks as if all were well."""
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "a.yaml").write_text(content)
    process = RunProcess(folder, tmp_path / "ledger.db").launch()
    assert process.wait() == 1
    process.close()
    assert str(folder) in process.error and "Traceback" not in process.error
    assert not (tmp_path / "ledger.db").exists()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "missing"])
def test_a_damaged_ledger_is_refused_and_left_alone(folder: Path, upstream: SimulatorProcess, damage: str) -> None:
    """A new ledger in its place would hand out the month's budget a second time."""
    ledger = folder.parent / "ledger.db"
    with run(folder, upstream) as process:
        assert process.chat("chat").status == 200
    whole = ledger.read_bytes()
    if damage == "missing":
        ledger.unlink()
    else:
        ledger.write_bytes(b"dear diary" * 1000 if damage == "garbage" else whole[: len(whole) // 2])
    before = ledger.read_bytes() if ledger.exists() else None
    process = run(folder, upstream).launch()
    assert process.wait() == 3
    process.close()
    assert str(ledger) in process.error and "Traceback" not in process.error
    assert (ledger.read_bytes() if ledger.exists() else None) == before


def test_kill_9_and_a_restart_keep_the_money(folder: Path, upstream: SimulatorProcess) -> None:
    """What was spent before a crash must be spent after it, and what was in flight is charged, not forgotten."""
    with run(folder, upstream) as process:
        for _ in range(5):
            assert process.chat("chat").status == 200
        upstream.fault("hang", stream=True, after_chunks=2)
        stream = process.stream("chat")
        stream.next_event()
        process.kill()
    upstream.clear_faults()
    settled = upstream.bill()["total_nusd"]
    with run(folder, upstream) as process:
        assert process.chat("chat").status == 200
    bill = upstream.final_bill()["total_nusd"]
    assert settled < bill <= spent_nusd(folder)


def test_sigterm_lets_the_running_stream_end_and_closes_the_ledger(folder: Path, upstream: SimulatorProcess) -> None:
    """A rollout must not cut answers, nor leave a lease behind that counts as spent."""
    upstream.fault("slow", stream=True, per_chunk_s=0.05)
    process = run(folder, upstream).start()
    stream = process.stream("chat")
    first = stream.next_event()
    process.signal(signal.SIGTERM)
    process.wait_for("stopping")
    events = [first, *stream.rest()]
    assert events[-1] == "[DONE]"
    assert process.wait() == 0
    process.close()
    assert upstream.final_bill()["total_nusd"] == spent_nusd(folder)


def test_a_second_sigint_ends_at_once(folder: Path, upstream: SimulatorProcess) -> None:
    """Who presses Ctrl-C twice does not want to wait for the longest stream; the money is still right."""
    upstream.fault("hang", stream=True, after_chunks=2)
    process = run(folder, upstream).start()
    stream = process.stream("chat")
    stream.next_event()
    process.signal(signal.SIGINT)
    process.wait_for("stopping")
    process.signal(signal.SIGINT)
    assert process.wait() == 130
    process.close()
    stream.rest()
    with run(folder, upstream) as process:
        upstream.clear_faults()
        assert process.chat("chat").status == 200
    assert upstream.final_bill()["total_nusd"] <= spent_nusd(folder)


def test_an_address_or_a_ledger_in_use_is_said(folder: Path, upstream: SimulatorProcess) -> None:
    """Two of them on one ledger would each spend the budget; two on one port would share the requests."""
    with run(folder, upstream):
        second = run(folder, upstream).launch()
        assert second.wait() == 3
        second.close()
        assert "ledger" in second.error and "Traceback" not in second.error
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = run(folder, upstream, "--listen", address).launch()
        assert process.wait() == 4
        process.close()
        assert address in process.error and "Traceback" not in process.error


def test_a_secret_that_changes_is_used_for_the_next_request(folder: Path, upstream: SimulatorProcess) -> None:
    """A rotated key that needs a restart is a key that is not rotated."""
    secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: upstream}\nstringData: {apiKey: %s}\n"
    (folder / "secret.yaml").write_text(secret % "wrong-key")
    process = RunProcess(
        folder, folder.parent / "ledger.db", upstream=upstream.url, env={"UPSTREAM_API_KEY": "", "UPSTREAM_API_KEY_PRO": ""}
    )
    with process:
        assert process.chat("chat").status in (401, 502)
        (folder / "secret.yaml").write_text(secret % "sk-upstream")
        served_by(process, FLASH)
    assert not any("sk-upstream" in line or "wrong-key" in line for line in process.raw)


def test_a_budget_steps_the_route_down_and_the_log_tells_a_person(folder: Path, upstream: SimulatorProcess) -> None:
    """Who tries a policy must see it work: in the model that answers, and in a sentence."""
    steps = "  steps:\n  - {atPercent: 10, action: Notify}\n  - {atPercent: 30, action: StepDown, maxTier: UltraBudget}\n"
    (folder / "budget.yaml").write_text(budget("0.002", steps))
    with run(folder, upstream) as process:
        until_s = time.monotonic() + START_S
        tiers = []
        while time.monotonic() < until_s:
            reply = process.chat("chat", "word " * 500)
            tiers.append(reply.headers.get("x-stepdown-tier", str(reply.status)))
            if reply.headers.get("x-stepdown-reason") == "StepInForce":
                break
            time.sleep(0.05)
        assert tiers[0] == "Budget" and tiers[-1] == "UltraBudget"
        line = process.wait_for("SteppedDown")
        assert "default/team" in line["object"] and "maxTier UltraBudget is in force: 1 of 1 routes" in line["msg"]


def test_several_processes_share_one_budget(folder: Path, upstream: SimulatorProcess) -> None:
    """With `--workers` the ceiling is one, not one a process."""
    (folder / "budget.yaml").write_text(budget("0.001"))
    with run(folder, upstream, "--workers", "2") as process:
        statuses: list[int] = []

        def ask() -> None:
            for _ in range(10):
                statuses.append(process.chat("chat", "word " * 200).status)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200, 429}
    bill = upstream.final_bill()["total_nusd"]
    assert 0 < bill <= spent_nusd(folder) <= 1_000_000
