"""The simulated upstream is what every end-to-end figure is judged by: were its bill wrong, a wrong ledger would look right."""

import ast
import asyncio
import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.upstream import PRO_KEY, STANDARD_KEY, Model, Simulator, SimulatorProcess, price_of
from tests.upstream.bill import Price, Tokens, cost_nusd, read_price_list
from tests.upstream.tokens import Draw, prompt_tokens
from tests.wire.upstream_client import Client, chat, run

HELLO = [{"role": "user", "content": "hello"}]
WORST = Model(rule="worst", output_tokens=(100, 100), cached_of_100=0)


def simulate(test: Callable[[Simulator], Awaitable[None]], **options: Any) -> None:
    async def scene() -> None:
        async with Simulator(**options) as sim:
            await test(sim)

    run(scene())


def test_it_shares_no_arithmetic_with_the_product() -> None:
    """A user would lose the second opinion: ledger and bill would be wrong together."""
    for path in Path(__file__).parents[1].joinpath("upstream").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "stepdown"], path


def test_a_price_is_what_the_price_list_says() -> None:
    """A user would compare the ledger with a bill made at wrong prices."""
    prices = read_price_list()
    assert prices["deepseek-ai/deepseek-v4-flash"] == Price(Decimal("0.18"), Decimal("0.18"), Decimal("0.25"))
    assert prices["ernie-speed-128k"] == Price(Decimal("0.00"), Decimal("0.00"), Decimal("0.20"))
    assert prices["glm-4.6"] is None
    assert sum(price is not None for price in prices.values()) >= 30


@pytest.mark.parametrize(
    ("price", "tokens", "expected_nusd"),
    [
        # 1,000 x $0.18/M + 500 x $0.25/M = $0.000305
        (("0.18", "0.25"), Tokens(prompt=1000, completion=500), 305_000),
        # 400 of 1,000 cached at $0.018/M: 600 x 0.18 + 400 x 0.018 + 500 x 0.25 = 240.2 $/M-tokens
        (("0.18", "0.25", "0.018"), Tokens(prompt=1000, cached=400, completion=500), 240_200),
        # 1 x $0.0001/M = 0.1 nUSD, rounded up once
        (("0.0001", "0"), Tokens(prompt=1, completion=0), 1),
        # 3 x 0.0001 + 5 x 0.0003 = 1.8 nUSD: rounding each part up would give 3
        (("0.0001", "0.0003"), Tokens(prompt=3, completion=5), 2),
        # 10^12 tokens at $3/M stay exact
        (("3.00", "3.00"), Tokens(prompt=10**12, completion=1), 3_000_000_000_003_000),
        (("0", "0"), Tokens(prompt=7, completion=7), 0),
    ],
)
def test_a_request_costs_what_a_person_computes(price: tuple[str, ...], tokens: Tokens, expected_nusd: int) -> None:
    """A user would be told `ledger = bill` for a bill that no invoice would show."""
    known = price_of(*price)
    assert known is not None
    assert cost_nusd(known, tokens) == expected_nusd


@pytest.mark.parametrize("rule", ["typical", "worst"])
@pytest.mark.parametrize("text", ["", "x", "plain words " * 50, "Übergrößenträger " * 20, "漢字" * 300, "\n\t\\" * 99])
def test_a_prompt_has_never_more_tokens_than_its_bytes_and_a_few(rule: Any, text: str) -> None:
    """Were the simulator's tokeniser worse than any real one, the product's honest bound would look broken."""
    for seed in range(20):
        body = {"messages": [{"role": "user", "content": text}, {"role": "system", "content": text}]}
        tokens = prompt_tokens(body, rule, Draw(seed, text.encode()))
        assert tokens <= 2 * len(text.encode()) + 2 * 4 + 3
        if rule == "worst":
            assert tokens == 2 * len(text.encode()) + 2 * 4 + 3


def test_the_bill_of_a_few_requests_by_hand() -> None:
    """A user would see a total that is not the sum of the requests."""

    async def scene(sim: Simulator) -> None:
        async with Client(sim.port) as client:
            status, _, body = await client.post({"model": "qwen3-8b", "messages": HELLO})
            assert status == 200
            # "hello" is 5 bytes, 4 for the message, 3 for the request: 12 in, 100 out, $0.01/M each: 112 x 0.01 = 1,120 nUSD
            assert json.loads(body)["usage"]["prompt_tokens"] == 12
            assert json.loads(body)["usage"]["completion_tokens"] == 100
            assert sim.bill.total_nusd == 1_120
            # 30 out of at most 30 for each of two choices: (12 + 60) x 0.01 = 720 nUSD
            await client.post({"model": "Qwen3-8B", "messages": HELLO, "max_tokens": 30, "n": 2})
            assert sim.bill.total_nusd == 1_840
            # 12 x 0.18 + 7 x 0.25 = 3.91: the smaller of two maxima holds
            both = {"max_tokens": 50, "max_completion_tokens": 7}
            await client.post({"model": "deepseek-v4-flash", "messages": HELLO, **both})
            assert sim.bill.total_nusd == 5_750
            await client.post({"model": "Pro/deepseek-ai/DeepSeek-R1", "messages": HELLO}, key=PRO_KEY)
        assert sim.bill.by_key == {STANDARD_KEY: 5_750, PRO_KEY: 12 * 550 + 100 * 2_500}
        assert sim.bill.by_model["deepseek-v4-flash"] == 3_910
        assert [line.cost_nusd for line in sim.bill.lines][:3] == [1_120, 720, 3_910]
        assert sim.bill.total_nusd == sum(sim.bill.by_model.values()) == sum(sim.bill.by_key.values())

    simulate(scene, model=WORST)


def test_usage_is_what_is_billed_for_any_traffic() -> None:
    """A user's ledger, which sees usage only, could never equal the bill."""

    async def scene(sim: Simulator) -> None:
        total = Decimal(0)
        async with Client(sim.port) as client:
            for number in range(60):
                messages = [{"role": "user", "content": "word " * (number * 7)}]
                body = chat("Qwen/Qwen3-32B", messages, stream=number % 2 == 0, n=1 + number % 3, max_tokens=50 + number * 5)
                _, _, answer = await client.post(body)
                usage = client.usage(answer)
                details = usage["prompt_tokens_details"]
                assert 0 <= details["cached_tokens"] <= usage["prompt_tokens"]
                assert usage["completion_tokens_details"]["reasoning_tokens"] == usage["completion_tokens"] * 40 // 100
                assert usage["completion_tokens"] <= (1 + number % 3) * (50 + number * 5)
                uncached = usage["prompt_tokens"] - details["cached_tokens"]
                cost = uncached * Decimal("0.18") + details["cached_tokens"] * Decimal("0.02")
                total += (cost + usage["completion_tokens"] * Decimal("0.28")) * 1000  # whole nUSD: no rounding at these prices
        assert sim.bill.total_nusd == total
        assert any(line.tokens.cached for line in sim.bill.lines)

    cheaper_when_cached = {"Qwen/Qwen3-32B": price_of("0.18", "0.28", "0.02")}
    simulate(scene, model=Model(reasoning_percent=40), prices=cheaper_when_cached)


def test_the_same_seed_gives_the_same_bill_whatever_the_order() -> None:
    """A failing run could not be repeated."""
    totals = []
    bodies = [chat("qwen3-8b", [{"role": "user", "content": f"question {number}"}]) for number in range(30)]

    async def scene(sim: Simulator) -> None:
        async with Client(sim.port) as client:
            for body in bodies:
                await client.post(body)
        totals.append(sim.bill.total_nusd)
        bodies.reverse()

    simulate(scene)
    simulate(scene)
    simulate(scene, model=Model(seed=2))
    assert totals[0] == totals[1] != totals[2]


@pytest.mark.parametrize(
    ("body", "key", "status", "code"),
    [
        ({"model": "gpt-9", "messages": HELLO}, STANDARD_KEY, 404, "model_not_found"),
        ({"model": "qwen3-8b", "messages": HELLO}, None, 401, "invalid_api_key"),
        ({"model": "qwen3-8b", "messages": HELLO}, "sk-other", 401, "invalid_api_key"),
        ({"model": "Pro/deepseek-ai/DeepSeek-R1", "messages": HELLO}, STANDARD_KEY, 401, "invalid_api_key"),
        ({"model": "qwen3-8b", "messages": []}, STANDARD_KEY, 400, None),
        ({"model": "qwen3-8b", "messages": HELLO, "max_tokens": 0}, STANDARD_KEY, 400, None),
        ({"model": "qwen3-8b", "messages": HELLO, "n": "2"}, STANDARD_KEY, 400, None),
        ({"messages": HELLO}, STANDARD_KEY, 400, None),
    ],
)
def test_what_a_provider_refuses_is_refused_and_not_billed(body: Any, key: str | None, status: int, code: str | None) -> None:
    """A proxy that sends a wrong key or model would pass its tests, and fail on the real upstream."""

    async def scene(sim: Simulator) -> None:
        async with Client(sim.port) as client:
            seen, _, answer = await client.post(body, key=key)
        error = json.loads(answer)["error"]
        assert (seen, error["code"]) == (status, code)
        assert error["message"]
        assert sim.bill.total_nusd == 0

    simulate(scene)


def test_models_are_listed_for_whoever_has_a_key() -> None:
    """A client that lists models would be tested against something no provider answers."""

    async def scene(sim: Simulator) -> None:
        async with Client(sim.port) as client:
            status, _, body = await client.request("GET", "/v1/models", b"", STANDARD_KEY)
            assert status == 200
            assert "qwen3-8b" in [model["id"] for model in json.loads(body)["data"]]
            assert (await client.request("GET", "/v1/models", b"", None))[0] == 401

    simulate(scene)


def test_the_log_has_what_was_sent_and_keep_bounds_it() -> None:
    """A test of what the proxy forwards would assert on nothing; a long run would eat the machine's memory."""

    async def scene(sim: Simulator) -> None:
        async with Client(sim.port) as client:
            for number in range(5):
                await client.post(chat("qwen3-8b", HELLO, user=f"user-{number}"))
        assert [entry.body["user"] for entry in sim.log] == ["user-3", "user-4"]
        assert [entry.request.headers["authorization"] for entry in sim.log] == [f"Bearer {STANDARD_KEY}"] * 2
        assert sim.log[0].cost_nusd == sim.bill.lines[0].cost_nusd > 0
        assert len(sim.bill.lines) == 2
        assert sim.requests == 5
        assert sim.bill.outcomes == {"complete": 5}

    simulate(scene, keep=2)


def test_a_process_of_its_own_takes_orders_and_shows_its_bill() -> None:
    """The demo and the kill tests order faults from outside: one that does not arrive would make them pass by accident."""

    async def ask(port: int, **fields: Any) -> int:
        async with Client(port) as client:
            status, _, _ = await client.post(chat("qwen3-8b", HELLO, **fields))
            return status

    with SimulatorProcess(
        "--tokens", "worst", "--output", "100", "100", "--cached", "0", "--price", "qwen3-8b=1.00,2.00"
    ) as sim:
        assert run(ask(sim.port)) == 200
        assert sim.final_bill()["total_nusd"] == 12 * 1_000 + 100 * 2_000
        sim.fault("status", status=503, next=1)
        assert run(ask(sim.port)) == 503
        assert run(ask(sim.port, max_tokens=1)) == 200
        assert sim.bill()["by_model"] == {"qwen3-8b": 12 * 1_000 + 100 * 2_000 + 12 * 1_000 + 1 * 2_000}
        assert [entry["outcome"] for entry in sim.requests()] == ["complete", "refused", "complete"]
        with pytest.raises(ValueError, match="sttus"):
            sim.fault("sttus")
        sim.reset()
        assert sim.bill()["total_nusd"] == 0


def test_a_reset_does_not_take_the_money_of_a_request_in_flight_into_the_new_bill() -> None:
    """The second of two scenes would be billed for the first one's answers."""

    async def scene(sim: Simulator) -> None:
        async with Client(sim.port) as client:
            pending = asyncio.ensure_future(client.post(chat("qwen3-8b", HELLO)))
            await sim.arrived(1)
            old = sim.bill
            sim.reset()
            await pending
        assert old.total_nusd > 0
        assert sim.bill.total_nusd == 0

    simulate(scene, latencies_s=[0.05])


def test_what_is_in_flight_is_known_at_what_it_will_cost_also_when_every_connection_is_cut() -> None:
    """A proof that watches the bill would see an overspend only when it is too late, or not at all."""

    async def test(sim: Simulator) -> None:
        async with Client(sim.port) as client:
            client.send("POST", "/v1/chat/completions", json.dumps(chat("Qwen3-8B", HELLO)).encode(), STANDARD_KEY)
            await sim.arrived(1)
            ((entry, nusd),) = sim.pending()
            assert (entry.number, entry.outcome, sim.bill.total_nusd) == (1, "in_flight", 0)
            sim.cut()
            await sim.idle()
        assert nusd == sim.bill.total_nusd > 1_000
        assert list(sim.pending()) == []

    simulate(test, model=WORST, latencies_s=[15.0])


def test_a_price_that_is_raised_holds_from_then_on() -> None:
    """A bill at yesterday's prices would hide what a dearer month costs."""

    async def test(sim: Simulator) -> None:
        async with Client(sim.port) as client:
            costs = []
            for output_usd in ("1", "2"):
                dear = price_of("0", output_usd)
                assert dear is not None
                sim.reprice("qwen3-8b", dear)
                await client.post(chat("Qwen3-8B", HELLO))
                costs.append(sim.bill.lines[-1].cost_nusd)
        assert costs == [100_000, 200_000]

    simulate(test, model=WORST)
