"""`stepdown report savings`: the quoted scenarios to the cent, or the ledger's real traffic, against a baseline's price."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepdown.cli.errors import CommandError
from stepdown.cli.output import Format, output_option, print_machine, print_table

if TYPE_CHECKING:
    from stepdown.budget.savings import Saving, Traffic, TrafficSaving
    from stepdown.model.catalog import Catalog, CatalogModel
    from stepdown.model.sync import Counter


@click.group()
def report() -> None:
    """What was saved, and against what."""


@report.command()
@output_option
@click.option(
    "--ledger",
    "ledger_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Report this ledger's real traffic instead of the quoted scenarios. It may be in use.",
)
@click.option("--month", metavar="YYYY-MM", help="The month of the real traffic, in UTC [default: this month].")
@click.option("--baseline", default="GPT-4o", show_default=True, metavar="MODEL", help="The model to compare with.")
@click.option(
    "--model", default="deepseek-ai/DeepSeek-V4-Flash", show_default=True, metavar="MODEL", help="The model of the scenarios."
)
@click.option(
    "-f", "--filename", "roots", type=click.Path(), multiple=True, metavar="DIR", help="Also read ModelCatalogs there."
)
def savings(
    output: Format, ledger_file: str | None, month: str | None, baseline: str, model: str, roots: tuple[str, ...]
) -> None:
    """What the same tokens would have cost on a baseline model."""
    from stepdown.sync.clock import now_s

    now = now_s()
    catalog = _catalog(roots, now)
    against = _find(catalog, baseline)
    if against.output_pusd is None:
        raise CommandError(
            f"--baseline {baseline}: its output price is not known; choose a model with a price, or state it (-f)"
        )
    if ledger_file is None:
        if month is not None:
            raise click.UsageError("--month needs --ledger: the scenarios have no month.")
        _scenarios(output, _find(catalog, model), against)
    else:
        _real(output, Path(ledger_file), month or datetime.fromtimestamp(now, UTC).strftime("%Y-%m"), against)


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


def _real(output: Format, ledger_file: Path, month: str, baseline: "CatalogModel") -> None:
    from stepdown.budget.savings import LOWER_BOUND, Prices, total, traffic_savings
    from stepdown.cli.ledger import reading

    first, last = _days(month)
    with reading(ledger_file) as ledger:
        traffic = _traffic(ledger.counters(first, last))
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
        click.echo(f"{ledger_file} has no traffic in {month}.")
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
    for note in notes:
        click.echo(f"\nNote: {note}.")


def _catalog(roots: tuple[str, ...], now: float) -> "Catalog":
    """The built-in catalog, and over it those of the folder."""
    from stepdown.model.catalog import Catalog, built_in

    catalogs = [built_in()]
    if roots:
        from stepdown.cli.folder import read_folder

        catalogs += read_folder(roots, "", strict=False).world.catalogs
    return Catalog.of(catalogs, now)


def _find(catalog: "Catalog", name: str) -> "CatalogModel":
    model = catalog.get(name)
    if model is None:
        from stepdown.model.names import nearest

        near = nearest(name, (known for each in catalog.models for known in (each.name, *each.ids)))
        hint = f"the nearest: {', '.join(near)}" if near else "see `stepdown explain` for what there is"
        raise CommandError(f"{name!r} is not a model of the catalog; {hint}")
    return model


def _days(month: str) -> tuple[int, int]:
    """The first and last day of a month in UTC, as days since 1970."""
    found = re.fullmatch(r"(\d{4})-(\d{2})", month)
    if not found or not 1 <= int(found[2]) <= 12 or int(found[1]) < 1970:
        raise click.BadParameter(f"{month!r} is not a month; write one such as 2026-11", param_hint="--month")
    year, number = int(found[1]), int(found[2])
    after = (year + 1, 1) if number == 12 else (year, number + 1)
    first, end = (int(datetime(*each, 1, tzinfo=UTC).timestamp()) // 86_400 for each in ((year, number), after))
    return first, end - 1


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
