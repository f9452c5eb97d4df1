"""How commands print: tables for people (rich, imported when a table is drawn), JSON or YAML for machines."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import click

from stepdown.cli.place import LedgerPlace

Format = Literal["table", "json", "yaml"]
F = TypeVar("F", bound=Callable[..., Any])

output_option: Callable[[F], F] = click.option(
    "-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True, help="How to print."
)


def folders_option(help_text: str, *, required: bool = False) -> Callable[[F], F]:
    """-f: folders or files of objects, as `roots`."""
    return click.option(
        "-f", "--filename", "roots", type=click.Path(), multiple=True, required=required, metavar="DIR", help=help_text
    )


folder_option: Callable[[F], F] = folders_option(
    "A folder of YAML or JSON objects, read with its subfolders, or one file. May be given several times.", required=True
)
folder_or_cluster_option: Callable[[F], F] = folders_option(
    "Read a folder of YAML or JSON objects, or one file, instead of the cluster. May be given several times."
)
proxy_option: Callable[[F], F] = click.option(
    "--proxy", metavar="NAMESPACE/NAME", help="Which RoutingProxy, where the folder (-f) has several."
)
ledger_option: Callable[[F], F] = click.option(
    "--ledger",
    "ledger_file",
    type=LedgerPlace(),
    default=None,
    metavar="FILE|URL",
    help="With -f: the ledger to read spend from. [default: ./stepdown.db where it exists]",
)


def month_days(month: str) -> tuple[int, int]:
    """The first and last day of `--month` in UTC, as days since 1970."""
    from stepdown.budget.months import month_span

    try:
        return month_span(month)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--month") from None


def print_machine(value: Any, output: Format) -> None:
    """A value as JSON or YAML, in full and in a stable order."""
    if output == "json":
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        import yaml

        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120), nl=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table as kubectl draws one: no frame, columns by two spaces. Folded to the terminal; never where there is none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else 200, force_terminal=terminal)
    with console.capture() as capture:
        if title:
            console.print(Text(title, style="bold"))
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())
