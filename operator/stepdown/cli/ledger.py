"""`stepdown ledger verify|init`, and how every command opens a ledger to read it while its keeper may be writing."""

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


@ledger.command()
@click.argument("file", type=click.Path(dir_okay=False), default=DEFAULT_FILE)
@click.option("--accept-loss", is_flag=True, help="The ledger that was here is lost: what its witness knows counts as spent.")
def init(file: str, accept_loss: bool) -> None:
    """Make an empty ledger; or accept that the one before it is lost.

    FILE is the ledger [default: stepdown.db]. The operator makes its ledger itself, and grants nothing from an empty one while
    its witness knows of money that was granted. Bring the ledger back from a backup then. If there is none, --accept-loss says
    that everything up to the witness's marks counts as spent, until the proxies that still have it say what became of it. The
    operator may be running: it hears of it at once.
    """
    from stepdown.ledger import Ledger
    from stepdown.ledger.errors import LedgerError, LedgerRefused

    path = Path(file)
    there = path.exists()
    if there and not accept_loss:
        raise CommandError(f"{file}: there is a ledger already. `stepdown ledger verify {file}` says whether it is whole")
    try:
        if not there:
            Ledger.open(path, create=True).close()
        if accept_loss:
            opened = Ledger.open(path, create=False, beside=True)
            try:
                opened.accept_loss()
            finally:
                opened.close()
    except LedgerRefused as error:
        raise CommandError(f"{file}: {error}") from None
    except LedgerError as error:
        raise LedgerUnusable(str(error)) from None
    made = "" if there else f"{file}: a new, empty ledger. "
    accepted = f"{file}: the loss is accepted; up to its witness's marks everything counts as spent." if accept_loss else ""
    click.echo((made + accepted).strip())
