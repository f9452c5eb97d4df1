"""`/metrics` is text that Prometheus reads, and its numbers are the till's."""

import asyncio
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from stepdown.proxy.hold import Usage
from stepdown.proxy.metrics import Family, Histogram, Sample, lines, one, render
from tests.unit.proxy_money import BIG, TEAM, Keeper, Proxy, only, route, run, shape, table

LINE = re.compile(
    r'(?P<name>[a-z_]+)(?:\{(?P<labels>[a-z]+="(?:[^"\\\n]|\\.)*"(?:,[a-z]+="(?:[^"\\\n]|\\.)*")*)\})? (?P<value>\S+)'
)


def parsed(page: str) -> dict[str, float]:
    """Every sample by name and labels, read as the text format's grammar says; families must be announced before."""
    assert page.endswith("\n")
    samples: dict[str, float] = {}
    announced = ""
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            announced, kind = line.split()[2:]
            assert kind in ("counter", "gauge", "histogram")
        elif not line.startswith("# HELP "):
            found = LINE.fullmatch(line)
            assert found, line
            assert re.fullmatch(re.escape(announced) + "(_bucket|_sum|_count)?", found["name"])
            key = found["name"] + "{" + (found["labels"] or "") + "}"
            assert key not in samples
            samples[key] = float(found["value"])
    return samples


def test_what_was_spent_is_what_is_shown(tmp_path: Path) -> None:
    """A dashboard that differs from the ledger is worse than none."""

    async def main() -> None:
        async with Proxy(tmp_path, keeper=Keeper({TEAM: 1_000})) as proxy:
            paid = await proxy.till.admit_later(proxy.route, "default", shape())
            proxy.till.settle(paid, Usage(4, 2, 3), success=True)
            cut = await proxy.till.admit_later(proxy.route, "critical", shape())
            proxy.till.settle(cut, None, success=False)
            await proxy.till.admit_later(proxy.route, "default", shape())
            await asyncio.sleep(2)
            page = parsed(render(proxy.till, proxy.syncer, [one("stepdown_extra", "gauge", "More.", 7)]))
            labels = 'route="shop/chat",model="big",class="default"'
            assert page[f"stepdown_requests_total{{{labels}}}"] == 1
            assert page[f"stepdown_successes_total{{{labels}}}"] == 1
            assert page[f'stepdown_tokens_total{{{labels},kind="input"}}'] == 4
            assert page[f'stepdown_tokens_total{{{labels},kind="cached_input"}}'] == 2
            assert page[f'stepdown_tokens_total{{{labels},kind="output"}}'] == 3
            assert page[f"stepdown_cost_usd_total{{{labels}}}"] == 36e-9
            critical = labels.replace("default", "critical")
            assert page[f"stepdown_estimated_usd_total{{{critical}}}"] == BIG * 1e-9
            lease = f'budget="shop/team",account="{TEAM}"'
            assert page[f"stepdown_lease_consumed_usd{{{lease}}}"] == (36 + BIG) * 1e-9
            assert page[f"stepdown_lease_reserved_usd{{{lease}}}"] == BIG * 1e-9
            assert page["stepdown_requests_in_flight{}"] == 1
            assert page["stepdown_requests_waiting{}"] == 0
            assert 0 <= page["stepdown_sync_age_seconds{}"] < 2
            assert 55 < page["stepdown_lease_life_seconds{}"] <= 60
            assert page["stepdown_sync_failures_total{}"] == 0
            assert page["stepdown_extra{}"] == 7

    run(main())


def test_a_proxy_that_has_never_synced_says_so(tmp_path: Path) -> None:
    """An age of 0 would look healthy."""

    async def main() -> None:
        keeper = Keeper()
        keeper.lose_messages = 10**9
        async with Proxy(tmp_path, table([route(budgets=())]), keeper) as proxy:
            page = parsed(render(proxy.till, proxy.syncer))
            assert page["stepdown_sync_age_seconds{}"] == float("inf")
            assert page["stepdown_sync_failures_total{}"] >= 1
            assert only(proxy.till).name == "shop/chat"

    run(main())


@given(st.text(max_size=30))
def test_no_label_breaks_the_page(value: str) -> None:
    """One odd model name in a catalog would hide all metrics of a proxy."""
    (sample,) = [
        line for line in lines(Family("x", "gauge", value, (Sample((("model", value),), "1"),))) if line.startswith("x")
    ]
    found = LINE.fullmatch(sample)
    assert found, sample
    label = found["labels"].removeprefix('model="').removesuffix('"')
    assert re.sub(r"\\(.)", lambda each: {"n": "\n"}.get(each[1], each[1]), label) == value


@given(st.lists(st.floats(0, 10, allow_nan=False), max_size=50))
def test_a_histogram_counts_every_observation_under_its_bound(observed: list[float]) -> None:
    """Percentiles that alerts stand on would be wrong."""
    bounds = (0.5, 1.0, 5.0)
    histogram = Histogram("latency_seconds", "How long.", bounds)
    for value in observed:
        histogram.observe(value)
    samples = {(each.suffix, each.labels): each.value for each in histogram.family().samples}
    for bound in bounds:
        assert samples[("_bucket", (("le", repr(bound)),))] == str(sum(value <= bound for value in observed))
    assert samples[("_bucket", (("le", "+Inf"),))] == samples[("_count", ())] == str(len(observed))
    assert abs(float(samples[("_sum", ())]) - sum(observed)) < 1e-6
