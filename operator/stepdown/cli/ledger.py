"""`stepdown ledger verify`, and how every command opens a ledger to read it while `stepdown run` may be writing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepdown.cli.errors import CommandError, LedgerUnusable
from stepdown.cli.output import Format, output_option, print_machine

if TYPE_CHECKING:
    from stepdown.ledger import Ledger

DEFAULT_FILE = "stepdown.db"


@contextmanager
def reading(file: Path) -> "Iterator[Ledger]":
    """The ledger, read-only; what is wrong with it becomes the command's error."""
    from stepdown.ledger import Ledger
    from stepdown.ledger.errors import LedgerError

    try:
        ledger = Ledger.open(file, create=False, read_only=True)
    except LedgerError as error:
        raise LedgerUnusable(str(error)) from None
    try:
        yield ledger
    except LedgerError as error:
        raise LedgerUnusable(str(error)) from None
    finally:
        ledger.close()


@click.group()
def ledger() -> None:
    """The spend ledger."""


@ledger.command()
@click.argument("file", type=click.Path(dir_okay=False), default=DEFAULT_FILE)
@output_option
def verify(file: str, output: Format) -> None:
    """Recompute the ledger's sums from its rows and name every difference.

    FILE is the ledger [default: stepdown.db]; `stepdown run` may be using it.
    """
    with reading(Path(file)) as opened:
        differences = opened.verify()
        accounts = len(opened.balances(0.0, ended=True))
    if output != "table":
        print_machine({"ledger": file, "accounts": accounts, "differences": differences}, output)
    else:
        for difference in differences:
            click.echo(difference)
        if not differences:
            click.echo(f"{file}: {accounts} account{'' if accounts == 1 else 's'}; every sum agrees with its rows.")
    if differences:
        raise CommandError(f"{file}: {len(differences)} of the ledger's sums do not agree. Keep the file, and report it")
