"""`stepdown statement`: a month's bill by whom it is booked on, for those who pay. `budget.statement` makes it.

Of a cluster, as `stepdown report` is, or of a ledger. Its lines add up to the nano-dollar to what the budgets say, and what
differs (a budget's month is of its own time zone) is named.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from stepdown.budget.months import day_text, instant, rfc3339
from stepdown.budget.statement import BY, KINDS, AccountLine, By, Line, Statement, make_statement
from stepdown.cli.cluster import Reach, asked, cluster_options
from stepdown.cli.output import folders_option, month_days, print_machine, print_table
from stepdown.cli.place import DEFAULT_FILE, LedgerPlace, shown
from stepdown.model.money import nusd_to_usd

if TYPE_CHECKING:
    from stepdown.budget.statement import MonthBooks
    from stepdown.cluster.client import Cluster

NUMBERS = ("requests", "successes", "input_tokens", "cached_input_tokens", "output_tokens")
DEFAULT_BY = ("namespace", "route", "model", "class")


def _by(context: click.Context, parameter: click.Parameter, value: str) -> tuple[By, ...]:
    names = [each.strip() for each in value.split(",") if each.strip()]
    unknown = [each for each in names if each not in BY]
    if unknown or not names:
        raise click.BadParameter(f"{value!r} is not a list of {', '.join(BY)}; write one such as {','.join(DEFAULT_BY)}")
    return tuple(dict.fromkeys(names))  # type: ignore[arg-type]  # each was looked for in BY


@click.command()
@click.option("--month", metavar="YYYY-MM", help="In UTC. [default: this month]")
@click.option(
    "--ledger",
    "ledger_place",
    type=LedgerPlace(),
    metavar="FILE|URL",
    help="Of this ledger, which may be in use, and not of a cluster.",
)
@folders_option(
    "Take purchase orders that the ledger does not know from the objects there. Its ledger: ./stepdown.db, or --ledger."
)
@click.option(
    "--by",
    default=",".join(DEFAULT_BY),
    callback=_by,
    metavar="LIST",
    show_default=True,
    help=f"A line for each; of {', '.join(BY)}, with commas. The purchase order is always one.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "csv", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How to print.",
)
@cluster_options(everywhere=True)
def statement(
    month: str | None,
    ledger_place: str | Path | None,
    roots: tuple[str, ...],
    by: tuple[By, ...],
    output: Literal["table", "csv", "json", "yaml"],
    reach: Reach,
) -> None:
    """A month's bill: what is to be booked on whom.

    Of a cluster's spend, or with --ledger (or -f) of a ledger's. What was charged without usage, and what is held for proxies
    that were lost, are lines of their own. Each line has the purchase order that the label stepdown.dev/purchase-order said on
    its day: of the ModelRoute, else of a SpendBudget that bound it, else of its namespace.
    """
    from stepdown.sync.clock import now_s

    month = month or instant(now_s()).strftime("%Y-%m")
    days = month_days(month)
    made, place = _made(month, days, by, ledger_place, roots, reach)
    if output == "csv":
        _print_csv(made)
    elif output == "table":
        _print(made, days, place, now_s())
    else:
        print_machine(_machine(made, days), output)


def _made(
    month: str, days: tuple[int, int], by: tuple[By, ...], ledger_place: str | Path | None, roots: tuple[str, ...], reach: Reach
) -> tuple[Statement, str]:
    """With where it was found, in words."""
    if ledger_place is None and not roots:
        return asked(reach, lambda cluster: _of_cluster(cluster, reach, month, days, by))
    if reach.written:
        raise click.UsageError("--ledger and -f are no cluster, whose options have no meaning there: leave out one of them.")
    from stepdown.cli.ledger import reading

    place = ledger_place or Path(DEFAULT_FILE)
    with reading(place) as ledger:
        books = ledger.books(*days)
    return make_statement(_with_orders(books, roots), month, by), shown(place)


async def _of_cluster(
    cluster: "Cluster", reach: Reach, month: str, days: tuple[int, int], by: tuple[By, ...]
) -> tuple[Statement, str]:
    from stepdown.cli.live import books

    scope = reach.scope(cluster)
    place = f"namespace {scope} (-A looks at all of them, -n NAME at another)" if scope else "the cluster"
    return make_statement(await books(cluster, reach.operator, *days), month, by, scope), place


def _with_orders(books: "MonthBooks", roots: tuple[str, ...]) -> "MonthBooks":
    """Purchase orders of a folder, for routes of which the ledger knows none: it may be older than the labels."""
    if not roots:
        return books
    from stepdown.cli.folder import read_folder
    from stepdown.plan.orders import purchase_orders
    from stepdown.plan.plan import make_plan
    from stepdown.plan.world import LedgerView
    from stepdown.sync.clock import now_s

    found = purchase_orders(make_plan(read_folder(roots, "").world, LedgerView(), now_s()))
    return replace(books, orders={**{route: ((0, each),) for route, each in found.items() if each}, **books.orders})


# For machines ---------------------------------------------------------------------------------------------------------


def _print_csv(made: Statement) -> None:
    """The lines and nothing else: whoever adds up the last column has the total."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [each.replace("-", "_") for each in made.by]
    writer.writerow(["month", "kind", "purchase_order", *columns, "budget", *NUMBERS, "usd"])
    for each in made.lines:
        row = [made.month, each.kind, each.order, *each.keys, each.budget, *(getattr(each, name) for name in NUMBERS)]
        writer.writerow([*row, nusd_to_usd(each.nusd)])
    click.echo(text.getvalue(), nl=False)


def _machine(made: Statement, days: tuple[int, int]) -> dict[str, Any]:
    return {
        "month": made.month,
        "days": {"first": day_text(days[0]), "last": day_text(days[1]), "timeZone": "UTC"},
        "currency": "USD",
        "by": list(made.by),
        "totalUSD": nusd_to_usd(made.total_nusd),
        "byKindUSD": {kind: nusd_to_usd(made.of(kind)) for kind in KINDS},
        "unbudgetedUSD": nusd_to_usd(made.unbudgeted_nusd),
        "lines": [_line_json(each, made.by) for each in made.lines],
        "budgets": [_account_json(each) for each in made.accounts],
    }


def _line_json(line: Line, by: Sequence[By]) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": line.kind, "purchaseOrder": line.order, **dict(zip(by, line.keys, strict=True))}
    if line.budget:
        found["budget"] = line.budget
    if line.kind == "metered":
        found |= {
            "requests": line.requests,
            "successes": line.successes,
            "inputTokens": line.input_tokens,
            "cachedInputTokens": line.cached_input_tokens,
            "outputTokens": line.output_tokens,
            "unpricedRequests": line.unpriced,
        }
    return {**found, "usd": nusd_to_usd(line.nusd)}


def _account_json(each: AccountLine) -> dict[str, Any]:
    balance = each.balance
    return {
        "budget": balance.budget,
        "period": {"start": rfc3339(balance.start_s), "end": rfc3339(balance.end_s)},
        "limitUSD": nusd_to_usd(balance.limit_nusd),
        "spentUSD": nusd_to_usd(balance.spent_nusd),
        "unreconciledUSD": nusd_to_usd(balance.unreconciled_nusd),
        "inLinesUSD": nusd_to_usd(each.lines_nusd),
        "differenceUSD": nusd_to_usd(each.elsewhere_nusd),
        "withinAnother": each.within,
    }


# For people -----------------------------------------------------------------------------------------------------------


def _print(made: Statement, days: tuple[int, int], place: str, now_s: float) -> None:
    if not made.lines:
        click.echo(f"There was no traffic in {made.month} in {place}.")
        return
    kinds = len({each.kind for each in made.lines}) > 1
    budgets = any(each.budget for each in made.lines)
    figures = ["REQUESTS", "INPUT", "CACHED", "OUTPUT", "USD"]
    names = [*(each.upper() for each in made.by), *(["BUDGET"] if budgets else []), *(["KIND"] if kinds else [])]
    rows = []
    for each in made.lines:
        row = [each.order, *each.keys, *([each.budget] if budgets else []), *([each.kind] if kinds else [])]
        rows.append([*row, *_figures(each)])
    rows.append(["total", *[""] * (len(names) + 4), nusd_to_usd(made.total_nusd)])
    so_far = ", so far" if days[0] <= now_s // 86_400 <= days[1] else ""
    title = f"Statement of {made.month}: {day_text(days[0])} to {day_text(days[1])} in UTC, both included{so_far}"
    print_table(title, ["PURCHASE ORDER", *names, *figures], rows, right=figures)
    if kinds:
        click.echo()
        for kind, text in KINDS.items():
            if any(each.kind == kind for each in made.lines):
                click.echo(f"{kind}: {text}.")
    _print_accounts(made)
    unpriced = sum(each.unpriced for each in made.lines)
    if unpriced:
        were = "request was" if unpriced == 1 else "requests were"
        click.echo(f"\nNote: {unpriced:,} {were} answered by a model without a price: no cost is counted.")


def _figures(line: Line) -> list[str]:
    if line.kind != "metered":
        return ["", "", "", "", nusd_to_usd(line.nusd)]
    counts = (line.requests, line.input_tokens, line.cached_input_tokens, line.output_tokens)
    return [*(f"{each:,}" for each in counts), nusd_to_usd(line.nusd)]


def _print_accounts(made: Statement) -> None:
    """What each budget says of the same month."""
    if not made.accounts:
        return
    columns = ["SPENT $", "UNRECONCILED $", "IN THE LINES $", "DIFFERENCE $"]
    rows = [
        [
            each.balance.budget,
            rfc3339(each.balance.start_s),
            rfc3339(each.balance.end_s),
            *(nusd_to_usd(sum_) for sum_ in _sums(each)),
        ]
        for each in made.accounts
    ]
    click.echo()
    print_table("Budgets of the month", ["BUDGET", "FROM", "UNTIL", *columns], rows, right=columns)
    if any(each.elsewhere_nusd for each in made.accounts):
        click.echo(
            "\nNote: DIFFERENCE is what a budget has and the lines have not (below zero: the lines have more), since its month"
            " is that of its time zone\nand lines are by whole days in UTC, or since routes came to the budget or left it."
        )
    if any(each.within for each in made.accounts):
        click.echo("\nNote: what several budgets hold is one line: unreconciled money is that of the widest of them.")
    if made.unbudgeted_nusd:
        click.echo(f"\nNote: ${nusd_to_usd(made.unbudgeted_nusd)} was spent by routes that no budget of the month holds.")


def _sums(each: AccountLine) -> tuple[int, int, int, int]:
    return each.balance.spent_nusd, each.balance.unreconciled_nusd, each.lines_nusd, each.elsewhere_nusd
