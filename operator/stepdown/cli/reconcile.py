"""`stepdown reconcile`: an upstream's bill against the ledger. `budget.invoice` reads it, `ledger.settlement` settles by it.

It may be run while the keeper is at work: in the operator's pod, or beside `stepdown run`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepdown.budget.invoice import Invoice, InvoiceError, InvoiceLine, billed, read_invoice
from stepdown.budget.months import day_text
from stepdown.cli.errors import CommandError, LedgerUnusable
from stepdown.cli.output import Format, folders_option, month_days, output_option, print_machine, print_table
from stepdown.cli.place import DEFAULT_FILE, VARIABLE, LedgerPlace, shown
from stepdown.model.money import nusd_to_usd

if TYPE_CHECKING:
    from stepdown.budget.settlement import ModelCost, Settlement, Share
    from stepdown.ledger import Ledger
    from stepdown.ledger.settlement import Reconciled, Statement
    from stepdown.model.catalog import Catalog

_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()


@click.command()
@click.option(
    "--invoice", "file", required=True, type=click.File("rb"), metavar="FILE", help="The bill: CSV or JSON; - is stdin."
)
@click.option("--month", required=True, metavar="YYYY-MM", help="The month that it is of, in UTC.")
@click.option(
    "--through", metavar="YYYY-MM-DD", help="The bill is complete up to the end of this day in UTC. [default: the month's last]"
)
@click.option(
    "--ledger",
    "ledger_place",
    type=LedgerPlace(),
    envvar=VARIABLE,
    default=DEFAULT_FILE,
    metavar="FILE|URL",
    help=f"It may be in use. [default: {VARIABLE}, or {DEFAULT_FILE}]",
)
@folders_option("Also know models by the ModelCatalogs there.")
@click.option("--dry-run", is_flag=True, help="Say what would come of it, and change nothing.")
@output_option
def reconcile(
    file: Any,
    month: str,
    through: str | None,
    ledger_place: str | Path,
    roots: tuple[str, ...],
    dry_run: bool,
    output: Format,
) -> None:
    """Settle by an upstream's bill what is unreconciled.

    What was billed beyond what the proxies reported is charged to the budgets that hold money for proxies which were lost, by
    what each holds and never more than that; what cannot have been billed is free again; what may have been stays held. The
    same bill twice changes nothing, and a corrected one takes the place of the first.

    \b
    A line a model, or a model and day:
      model,day,requests,amount,currency
      Qwen/Qwen3-32B,2026-11-03,1200,0.21,USD

    Ends with 1 if bill and ledger differ by more than was held.
    """
    from stepdown.ledger import Ledger
    from stepdown.ledger.errors import LedgerError, LedgerRefused
    from stepdown.sync.clock import now_s

    first, last = month_days(month)
    through_day = last if through is None else _day(through, first, last)
    try:
        invoice = read_invoice(file.read(), month)
    except InvoiceError as error:
        raise CommandError(f"{file.name}: {error}. Nothing was changed") from None
    try:
        ledger = Ledger.open(ledger_place, create=False, beside=True)
        try:
            said = _statement(invoice, ledger, roots, first, through_day, now_s(), file.name)
            done = ledger.reconcile(said, now_s(), dry_run=dry_run)
        finally:
            ledger.close()
    except LedgerRefused as error:
        raise CommandError(f"{shown(ledger_place)}: {error}. Nothing was changed") from None
    except LedgerError as error:
        raise LedgerUnusable(str(error)) from None
    if output == "table":
        _print(said, done, dry_run)
    else:
        print_machine(_machine(said, done, dry_run), output)
    if not done.settlement.agrees:
        raise CommandError(_difference(done.settlement, month))


def _day(text: str, first: int, last: int) -> int:
    try:
        day = date.fromisoformat(text).toordinal() - _EPOCH_ORDINAL
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a day; write one such as 2026-11-20", param_hint="--through") from None
    if not first <= day <= last:
        raise click.BadParameter(f"{text} is not in the month that --month names", param_hint="--through")
    return day


# What the bill says -----------------------------------------------------------------------------------------------------


def _statement(
    invoice: Invoice, ledger: "Ledger", roots: tuple[str, ...], first: int, through_day: int, now_s: float, name: str
) -> "Statement":
    from stepdown.ledger.settlement import Statement

    late = next((each for each in invoice.lines if each.day is not None and each.day > through_day), None)
    if late is not None and late.day is not None:
        raise CommandError(
            f"{name}: {late.where}: {day_text(late.day)} is after {day_text(through_day)}, which --through says the bill goes"
            " up to. Leave the later days out. Nothing was changed"
        )
    metered = {each.model for each in ledger.counters(first, through_day)}
    known = _names(_catalog(ledger, roots, now_s), metered)
    canonical = {each.model: _canonical(each, known, name) for each in invoice.lines}
    _refuse_twice(invoice.lines, canonical, name)
    return Statement(invoice.month, invoice.digest, first, through_day, billed(invoice, canonical))


def _catalog(ledger: "Ledger", roots: tuple[str, ...], now_s: float) -> "Catalog":
    """The built-in catalog, over it those that the ledger remembers as accepted, over them those of the folder."""
    from stepdown.model.catalog import Catalog, built_in
    from stepdown.model.resources import CatalogSpec, Metadata, ModelCatalog
    from stepdown.plan.specs import parse_spec
    from stepdown.plan.world import AcceptedSpec

    catalogs = [built_in()]
    for uid, (generation, spec) in sorted(ledger.accepted().items()):
        if uid.startswith("ModelCatalog/"):
            found = parse_spec("ModelCatalog", AcceptedSpec(uid, generation, spec))
            if isinstance(found, CatalogSpec):
                catalogs.append(ModelCatalog(metadata=Metadata(name=uid.partition("/")[2]), spec=found))
    if roots:
        from stepdown.cli.folder import read_folder

        catalogs += read_folder(roots, "", strict=False).world.catalogs
    return Catalog.of(catalogs, now_s)


def _names(catalog: "Catalog", metered: Iterable[str]) -> dict[str, str]:
    """By name or id without regard to case: the ledger's name. What the ledger has metered is known whatever catalogs say."""
    found = {known.lower(): model.name for model in catalog.models for known in (*model.ids, model.name)}
    return found | {each.lower(): each for each in metered}


def _canonical(line: InvoiceLine, known: dict[str, str], name: str) -> str:
    found = known.get(line.model.lower())
    if found is None:
        from stepdown.model.names import nearest

        near = nearest(line.model, sorted(set(known.values())), 3)
        hint = f"the nearest: {', '.join(near)}" if near else "name it as the catalog does"
        raise CommandError(
            f"{name}: {line.where}: the model {line.model!r} is in no catalog and the ledger has not seen it; {hint}. State it"
            " in a ModelCatalog (-f), or leave the line out if it was not billed for these routes. Nothing was changed"
        )
    return found


def _refuse_twice(lines: Iterable[InvoiceLine], canonical: Mapping[str, str], name: str) -> None:
    """A model's ids may each have a line of their own, but not the very same one."""
    seen: dict[tuple[object, ...], InvoiceLine] = {}
    for each in lines:
        before = seen.setdefault((canonical[each.model], each.day, each.nusd, each.requests), each)
        if before is not each and each.nusd:
            raise CommandError(
                f"{name}: {each.where}: {each.model!r} is {canonical[each.model]!r}, and so is {before.model!r} of"
                f" {before.where} with the same amount: the bill has it twice. If it was billed under both names, add the two"
                " up. Nothing was changed"
            )


# For machines -----------------------------------------------------------------------------------------------------------


def _machine(said: "Statement", done: "Reconciled", dry_run: bool) -> dict[str, Any]:
    made = done.settlement
    return {
        "month": said.month,
        "days": {"first": day_text(said.first_day), "through": day_text(said.through_day), "timeZone": "UTC"},
        "digest": f"sha256:{said.digest}",
        "dryRun": dry_run,
        "changed": done.changed and not dry_run,
        "supersedes": done.supersedes or None,
        "agrees": made.agrees,
        "billedUSD": nusd_to_usd(made.billed_nusd),
        "meteredUSD": nusd_to_usd(made.metered_nusd),
        "roundingUSD": nusd_to_usd(made.slack_nusd),
        "unexplainedUSD": nusd_to_usd(made.excess_nusd),
        "notBilledUSD": nusd_to_usd(made.short_nusd),
        "models": [
            {
                "model": each.model,
                "billedUSD": nusd_to_usd(each.billed_nusd),
                "meteredUSD": nusd_to_usd(each.metered_nusd),
                "estimatedUSD": nusd_to_usd(each.estimated_nusd),
                "differenceUSD": nusd_to_usd(each.difference_nusd),
                "billedRequests": each.billed_requests,
                "requests": each.requests,
            }
            for each in made.models
        ],
        "accounts": [
            {
                "account": each.account,
                "heldUSD": nusd_to_usd(each.held_nusd),
                "chargedUSD": nusd_to_usd(each.charged_nusd),
                "releasedUSD": nusd_to_usd(each.released_nusd),
                "unreconciledUSD": nusd_to_usd(each.kept_nusd),
            }
            for each in made.shares
        ],
        "closedInstances": list(done.closed),
        "notSettled": list(done.waiting),
    }


# For people -------------------------------------------------------------------------------------------------------------


def _print(said: "Statement", done: "Reconciled", dry_run: bool) -> None:
    made = done.settlement
    days = f"{day_text(said.first_day)} to {day_text(said.through_day)} in UTC"
    columns = ["BILLED $", "LEDGER $", "OF IT ESTIMATED $", "DIFFERENCE $"]
    rows = [[each.model, *_usd(_of_model(each))] for each in made.models]
    whole = [sum(sums) for sums in zip(*map(_of_model, made.models), strict=True)] or [0] * 4
    counted = any(each.billed_requests is not None for each in made.models)
    if counted:
        rows = [[*row, _count(each.billed_requests), f"{each.requests:,}"] for row, each in zip(rows, made.models, strict=True)]
    rows.append(["total", *_usd(whole), *(["", ""] if counted else [])])
    head = [*columns, *(["BILLED REQUESTS", "LEDGER REQUESTS"] if counted else [])]
    print_table(f"Invoice of {said.month}: {days}", ["MODEL", *head], rows, right=head)
    if made.shares:
        columns = ["HELD $", "CHARGED $", "RELEASED $", "STILL HELD $"]
        click.echo()
        shares = [[each.account.rpartition("@")[0], *_usd(_of_share(each))] for each in made.shares]
        print_table("What was unreconciled", ["BUDGET", *columns], shares, right=columns)
    click.echo()
    for sentence in _sentences(done):
        click.echo(sentence)
    if dry_run:
        click.echo("This was a dry run: nothing was changed.")
    elif not done.changed:
        click.echo("Nothing was changed: this is what the ledger had already.")
    elif done.supersedes:
        click.echo(f"It takes the place of the invoice of {said.month} that was read on {done.supersedes}.")


def _sentences(done: "Reconciled") -> Iterable[str]:
    """What remains, and by which name."""
    made = done.settlement
    if made.agrees:
        yield "Bill and ledger agree" + (
            f", to what the bill is rounded by (${nusd_to_usd(made.slack_nusd)})." if made.slack_nusd else "."
        )
    over = sum(max(0, -each.difference_nusd) for each in made.models) - made.short_nusd
    if over > made.slack_nusd:
        yield f"${nusd_to_usd(over)} of what was charged at the reservation, for want of usage, was not billed; it stays so."
    if made.kept_nusd > made.slack_nusd:
        yield (
            f"${nusd_to_usd(made.kept_nusd)} stays held: several budgets held money, and nobody can tell for which of them the"
            " bill was."
        )
    elif made.kept_nusd:
        yield f"${nusd_to_usd(made.kept_nusd)} stays held for what the bill may have been rounded by."
    for sentence in done.waiting:
        yield f"Not settled: {sentence}."
    for name in done.closed:
        yield f"Instance {name} is closed for good: what it held is settled here."


def _difference(made: "Settlement", month: str) -> str:
    if made.excess_nusd > made.slack_nusd:
        return (
            f"${nusd_to_usd(made.excess_nusd)} was billed for {month} beyond all that the ledger has metered or held: does"
            " anybody else spend with the same key, and are the catalog's prices those of the bill?"
        )
    return (
        f"${nusd_to_usd(made.short_nusd)} was metered for {month} and not billed: does the bill have all of the month's lines,"
        " and are the catalog's prices those of the bill?"
    )


def _of_model(each: "ModelCost") -> Sequence[int]:
    return each.billed_nusd, each.metered_nusd, each.estimated_nusd, each.difference_nusd


def _of_share(each: "Share") -> Sequence[int]:
    return each.held_nusd, each.charged_nusd, each.released_nusd, each.kept_nusd


def _usd(sums: Iterable[int]) -> list[str]:
    write: Callable[[int], str] = nusd_to_usd
    return [write(each) for each in sums]


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
