"""`stepdown report month`: what a month has cost, by whatever a person is asked to account for."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

from stepdown.budget.verdict import percent
from stepdown.cli.output import Format, print_machine, print_table
from stepdown.model.money import nusd_to_usd
from stepdown.model.sync import Counter

if TYPE_CHECKING:
    from stepdown.cli.report import Found

SUMS = (
    "requests",
    "successes",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "cost_nusd",
    "estimated_nusd",
    "unpriced",
)
_KEYS: Mapping[str, Callable[[Counter], str]] = {
    "namespace": lambda counter: counter.route.partition("/")[0],
    "route": lambda counter: counter.route,
    "model": lambda counter: counter.model,
    "class": lambda counter: counter.request_class,
    "day": lambda counter: datetime.fromtimestamp(counter.day * 86_400, UTC).strftime("%Y-%m-%d"),
}
Sums = list[int]


def print_month(output: Format, found: "Found", by: Sequence[str]) -> None:
    """A row for each combination of `by` that had traffic, the dearest first; days stay in their order."""
    rows = _sums(found.counters, by)
    whole = [sum(each) for each in zip(*rows.values(), strict=True)] or [0] * len(SUMS)
    dated = "day" in by
    ordered = sorted(rows.items(), key=lambda row: row[0] if dated else (-row[1][SUMS.index("cost_nusd")], row[0]))
    if output != "table":
        made = [{**dict(zip(by, keys, strict=True)), **_json(sums)} for keys, sums in ordered]
        print_machine({"month": found.month, "by": list(by), "total": _json(whole), "rows": made}, output)
        return
    if not rows:
        click.echo(f"There was no traffic in {found.month} in {found.place}.")
        return
    columns = ["REQUESTS", "FAILED", "INPUT", "CACHED", "OUTPUT", "COST $", "SHARE"]
    cells = [[*keys, *_cells(sums, whole)] for keys, sums in ordered]
    cells.append(["total", *[""] * (len(by) - 1), *_cells(whole, whole)])
    print_table(f"{found.month} (UTC)", [*(each.upper() for each in by), *columns], cells, right=columns)
    estimated, unpriced = (whole[SUMS.index(each)] for each in ("estimated_nusd", "unpriced"))
    if estimated:
        click.echo(f"\nNote: ${nusd_to_usd(estimated)} of it was charged at the reservation, for want of usage.")
    if unpriced:
        were = "request was" if unpriced == 1 else "requests were"
        click.echo(f"\nNote: {unpriced:,} {were} answered by a model without a price: no cost is counted.")


def _sums(counters: Sequence[Counter], by: Sequence[str]) -> dict[tuple[str, ...], Sums]:
    rows: dict[tuple[str, ...], Sums] = {}
    for counter in counters:
        row = rows.setdefault(tuple(_KEYS[each](counter) for each in by), [0] * len(SUMS))
        for index, name in enumerate(SUMS):
            row[index] += getattr(counter, name)
    return rows


def _cells(sums: Sums, whole: Sums) -> list[str]:
    requests, successes, fresh, cached, out, cost, *_ = sums
    everything = whole[SUMS.index("cost_nusd")]
    share = f"{percent(Fraction(cost, everything))} %" if everything else "–"
    return [
        f"{requests:,}",
        f"{requests - successes:,}",
        f"{fresh:,}",
        f"{cached:,}",
        f"{out:,}",
        nusd_to_usd(cost, digits=6),
        share,
    ]


def _json(sums: Sums) -> dict[str, Any]:
    requests, successes, fresh, cached, out, cost, estimated, unpriced = sums
    return {
        "requests": requests,
        "successes": successes,
        "inputTokens": fresh,
        "cachedInputTokens": cached,
        "outputTokens": out,
        "costUSD": nusd_to_usd(cost),
        "estimatedUSD": nusd_to_usd(estimated),
        "unpricedRequests": unpriced,
    }
