"""`stepdown report`: what a month has cost and by whom, and what its tokens would have cost on a baseline.

Of a ledger (--ledger), or of a cluster, whose operator has one. Without either, `savings` prints the quoted scenarios to the
cent.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepdown.cli.cluster import Reach, asked, cluster_options, note
from stepdown.cli.errors import CommandError
from stepdown.cli.output import Format, folders_option, month_days, output_option, print_machine, print_table
from stepdown.cli.place import LedgerPlace, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepdown.budget.savings import Saving, Traffic, TrafficSaving
    from stepdown.cluster.client import Cluster
    from stepdown.model.catalog import Catalog, CatalogModel
    from stepdown.model.resources import ModelCatalog
    from stepdown.model.sync import Counter


SCENARIO_MODEL = "deepseek-ai/DeepSeek-V4-Flash"
BY = ("namespace", "route", "model", "class", "day")

_ledger_option: "Callable[[Any], Any]" = click.option(
    "--ledger",
    "ledger_file",
    type=LedgerPlace(),
    metavar="FILE|URL",
    help="Report this ledger's traffic. It may be in use.",
)
_month_option: "Callable[[Any], Any]" = click.option("--month", metavar="YYYY-MM", help="In UTC. [default: this month]")


@click.group()
def report() -> None:
    """What a month has cost, and what was saved against what."""


@report.command()
@output_option
@_ledger_option
@_month_option
@click.option("--baseline", default="GPT-4o", show_default=True, metavar="MODEL", help="The model to compare with.")
@click.option(
    "--model",
    metavar="MODEL",
    help="Print the quoted scenarios, with this model. [default where neither a ledger nor a cluster is meant:"
    f" {SCENARIO_MODEL}]",
)
@folders_option("Also read ModelCatalogs there.")
@cluster_options(everywhere=True)
def savings(
    output: Format,
    ledger_file: str | Path | None,
    month: str | None,
    baseline: str,
    model: str | None,
    roots: tuple[str, ...],
    reach: Reach,
) -> None:
    """What the same tokens would have cost on a baseline model.

    Of the traffic of a cluster (its options, or `kubectl stepdown`) or of a ledger; without either, of the quoted scenarios.
    """
    from stepdown.sync.clock import now_s

    now = now_s()
    if ledger_file is None and (model is not None or not (reach.plugin or reach.written)):
        if month is not None:
            raise click.UsageError("--month needs --ledger or a cluster: the scenarios have no month.")
        catalog = _catalog(roots, now)
        _scenarios(output, _find(catalog, model or SCENARIO_MODEL), _baseline(catalog, baseline))
        return
    traffic = _gather(ledger_file, month, reach, catalogs=True)
    against = _baseline(_catalog(roots, now, traffic.catalogs), baseline)
    _real(output, traffic, against)


@report.command("month")
@output_option
@_ledger_option
@_month_option
@click.option(
    "--by", type=click.Choice(BY), multiple=True, default=("route", "model"), help="A row for each. [default: route, model]"
)
@cluster_options(everywhere=True)
def month_report(output: Format, ledger_file: str | Path | None, month: str | None, by: tuple[str, ...], reach: Reach) -> None:
    """What a month has cost so far, by route and model or by whatever --by says.

    Of a cluster's traffic, or with --ledger of a ledger's. --by may be given several times.
    """
    from stepdown.cli.month import print_month

    print_month(output, _gather(ledger_file, month, reach), tuple(dict.fromkeys(by)))


@dataclass(frozen=True, slots=True)
class Found:
    """A month's traffic, and where it was found."""

    counters: "Sequence[Counter]"
    month: str
    place: str
    """In words, for a report that is empty."""
    catalogs: "tuple[ModelCatalog, ...]" = ()


def _gather(ledger_file: str | Path | None, month: str | None, reach: Reach, *, catalogs: bool = False) -> Found:
    from stepdown.cli.ledger import reading
    from stepdown.sync.clock import now_s

    month = month or datetime.fromtimestamp(now_s(), UTC).strftime("%Y-%m")
    first, last = month_days(month)
    if ledger_file is None:
        return asked(reach, lambda cluster: _of_cluster(cluster, reach, month, (first, last), catalogs))
    if reach.written:
        raise click.UsageError(
            "--ledger is no cluster, and the options of a cluster have no meaning there: leave out one of them."
        )
    with reading(ledger_file) as ledger:
        return Found(ledger.counters(first, last, by_day=True), month, shown(ledger_file))


async def _of_cluster(cluster: "Cluster", reach: Reach, month: str, days: tuple[int, int], catalogs: bool) -> Found:
    """The traffic of the namespace in use, or of all; with its prices, if they are wanted and may be seen."""
    from stepdown.cli.live import counters
    from stepdown.cluster.errors import Forbidden, Unauthorized
    from stepdown.cluster.kinds import MODEL_CATALOG
    from stepdown.model.resources import ModelCatalog
    from stepdown.watch.store import read

    scope = reach.scope(cluster)
    found = await counters(cluster, reach.operator, *days)
    mine = [each for each in found if not scope or each.route.startswith(f"{scope}/")]
    stated = []
    if catalogs:
        try:
            stated = [read(each).thing for each in (await cluster.list(MODEL_CATALOG)).items]
        except Unauthorized:
            raise
        except Forbidden:
            note("you may not list ModelCatalogs: the baseline's price is the one that comes with this version.")
    place = f"namespace {scope} (-A looks at all of them, -n NAME at another)" if scope else "the cluster"
    return Found(mine, month, place, tuple(each for each in stated if isinstance(each, ModelCatalog)))


def _scenarios(output: Format, model: "CatalogModel", baseline: "CatalogModel") -> None:
    from stepdown.budget.savings import ASSUMPTION, scenario_savings
    from stepdown.model.money import pusd_to_usd_per_mtok

    if model.output_pusd is None or baseline.output_pusd is None:
        raise CommandError(
            f"--model {model.name}: its output price is not known; choose a model with a price, or state it (-f)"
        )
    rows = scenario_savings(model.output_pusd, baseline.output_pusd)
    usd, baseline_usd = pusd_to_usd_per_mtok(model.output_pusd), pusd_to_usd_per_mtok(baseline.output_pusd)
    if output != "table":
        head = {"model": model.name, "usdPerMTok": usd, "baseline": baseline.name, "baselineUSDPerMTok": baseline_usd}
        print_machine({**head, "assumption": ASSUMPTION, "scenarios": [_as_json(each) for each in rows]}, output)
        return
    columns = ["SCENARIO", "TOKENS A MONTH", f"{baseline.name} at ${baseline_usd}/M", f"{model.name} at ${usd}/M", "SAVED"]
    cells = [
        [each.name, _tokens(each.tokens), _money(each.baseline_nusd), _money(each.cost_nusd), f"{each.percent_text} %"]
        for each in rows
    ]
    print_table("", columns, cells, right=columns[1:])
    click.echo(f"\nAssumed: {ASSUMPTION}.")


def _real(output: Format, found: Found, baseline: "CatalogModel") -> None:
    from stepdown.budget.savings import LOWER_BOUND, Prices, total, traffic_savings

    traffic, month = _traffic(found.counters), found.month
    assert baseline.output_pusd is not None
    prices = Prices(baseline.name, baseline.input_pusd, baseline.cached_input_pusd, baseline.output_pusd)
    rows = traffic_savings(traffic, prices)
    whole = total(rows)
    notes = []
    if any(each.lower_bound for each in rows):
        notes.append(LOWER_BOUND)
    if any(each.incomplete for each in rows):
        notes.append(
            "rows marked * have requests whose cost is not known, counted as 0: nothing can be said of what they saved"
        )
    if output != "table":
        value = {"month": month, "baseline": baseline.name, "notes": notes, "total": _as_json(whole)}
        print_machine({**value, "rows": [_row_json(each) for each in rows]}, output)
        return
    if not rows:
        click.echo(f"There was no traffic in {month} in {found.place}.")
        return
    columns = ["ROUTE", "MODEL", "REQUESTS", "TOKENS", "COST", f"ON {baseline.name}", "SAVED", "PER SUCCESS"]
    cells = [_row(each) for each in rows]
    requests = sum(each.traffic.requests for each in rows)
    cells.append(
        [
            "total",
            "",
            f"{requests:,}",
            f"{whole.tokens:,}",
            _usd(whole.cost_nusd),
            _usd(whole.baseline_nusd),
            _percent(whole),
            "",
        ]
    )
    print_table(f"{month} (UTC)", columns, cells, right=columns[2:])
    for each in notes:
        click.echo(f"\nNote: {each}.")


def _catalog(roots: tuple[str, ...], now: float, others: "Sequence[ModelCatalog]" = ()) -> "Catalog":
    """The built-in catalog, over it those of the cluster, and over them those of the folder."""
    from stepdown.model.catalog import Catalog, built_in

    catalogs = [built_in(), *others]
    if roots:
        from stepdown.cli.folder import read_folder

        catalogs += read_folder(roots, "", strict=False).world.catalogs
    return Catalog.of(catalogs, now)


def _baseline(catalog: "Catalog", name: str) -> "CatalogModel":
    model = _find(catalog, name)
    if model.output_pusd is None:
        raise CommandError(f"--baseline {name}: its output price is not known; choose a model with a price, or state it (-f)")
    return model


def _find(catalog: "Catalog", name: str) -> "CatalogModel":
    model = catalog.get(name)
    if model is None:
        from stepdown.model.names import nearest

        near = nearest(name, (known for each in catalog.models for known in (each.name, *each.ids)))
        hint = f"the nearest: {', '.join(near)}" if near else "see `stepdown explain` for what there is"
        raise CommandError(f"{name!r} is not a model of the catalog; {hint}")
    return model


def _traffic(counters: "Iterable[Counter]") -> "list[Traffic]":
    """By route and model: a saving does not depend on the class."""
    from stepdown.budget.savings import Traffic

    sums: dict[tuple[str, str], list[int]] = {}
    fields = ("requests", "successes", "input_tokens", "cached_input_tokens", "output_tokens", "cost_nusd", "unpriced")
    for counter in counters:
        row = sums.setdefault((counter.route, counter.model), [0] * len(fields))
        for index, field in enumerate(fields):
            row[index] += getattr(counter, field)
    return [Traffic(route, model, *row) for (route, model), row in sorted(sums.items())]


def _row(each: "TrafficSaving") -> list[str]:
    traffic, saving = each.traffic, each.saving
    per = each.nusd_per_success
    return [
        traffic.route,
        traffic.model,
        f"{traffic.requests:,}" + ("*" if each.incomplete else ""),
        f"{saving.tokens:,}",
        _usd(saving.cost_nusd),
        _usd(saving.baseline_nusd),
        "?" if each.incomplete else _percent(saving),
        "–" if per is None else _usd(per),
    ]


def _row_json(each: "TrafficSaving") -> dict[str, Any]:
    from stepdown.model.money import nusd_to_usd

    traffic, per = each.traffic, each.nusd_per_success
    return {
        "route": traffic.route,
        "model": traffic.model,
        "requests": traffic.requests,
        "successes": traffic.successes,
        **_as_json(each.saving),
        "usdPerSuccess": None if per is None else nusd_to_usd(per),
        "lowerBound": each.lower_bound,
        "incomplete": each.incomplete,
    }


def _as_json(saving: "Saving") -> dict[str, Any]:
    from stepdown.model.money import nusd_to_usd

    return {
        "name": saving.name,
        "tokens": saving.tokens,
        "baselineUSD": nusd_to_usd(saving.baseline_nusd),
        "costUSD": nusd_to_usd(saving.cost_nusd),
        "savedUSD": nusd_to_usd(saving.saved_nusd),
        "savedPercent": None if saving.saved_percent is None else saving.percent_text,
    }


def _tokens(tokens: int) -> str:
    return f"{tokens // 10**9}B" if tokens % 10**9 == 0 else f"{tokens // 10**6}M"


def _money(nusd: int) -> str:
    from stepdown.model.money import nusd_to_usd

    whole, _, cents = nusd_to_usd(nusd, digits=2).partition(".")
    return f"${int(whole):,}.{cents}"


def _usd(nusd: int) -> str:
    from stepdown.model.money import nusd_to_usd

    return "$" + nusd_to_usd(nusd, digits=6)


def _percent(saving: "Saving") -> str:
    return f"{saving.percent_text} %" if saving.saved_percent is not None else "–"
