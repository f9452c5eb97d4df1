"""`stepdown ledger …`: looking after a ledger; and how every command opens one to read it while its keeper may be writing."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepdown.cli import place
from stepdown.cli.errors import CommandError, LedgerUnusable
from stepdown.cli.output import Format, output_option, print_machine
from stepdown.cli.place import DEFAULT_FILE as DEFAULT_FILE
from stepdown.cli.place import LedgerPlace, shown

if TYPE_CHECKING:
    from stepdown.ledger import Ledger
    from stepdown.ledger.migrate import Account
    from stepdown.ledger.transfer import Moved


@contextmanager
def unusable() -> Iterator[None]:
    """What is wrong with a ledger becomes the command's error; what it refuses is a problem that was found."""
    from stepdown.ledger.errors import LedgerError, LedgerRefused

    try:
        yield
    except LedgerRefused as error:
        raise CommandError(str(error)) from None
    except LedgerError as error:
        raise LedgerUnusable(str(error)) from None


@contextmanager
def reading(file: str | Path) -> "Iterator[Ledger]":
    """The ledger (a file, or the address of a database), read-only; what is wrong with it becomes the command's error."""
    from stepdown.ledger import Ledger

    with unusable():
        ledger = Ledger.open(file, create=False, read_only=True)
        try:
            yield ledger
        finally:
            ledger.close()


@click.group()
def ledger() -> None:
    """The spend ledger: a file, or a PostgreSQL database.

    LEDGER is a path, or postgresql://USER@HOST/DATABASE [default: STEPDOWN_LEDGER, or stepdown.db]. A password is not written
    into a command: it is in STEPDOWN_LEDGER, in PGPASSWORD, or in the file that STEPDOWN_LEDGER_PASSWORD_FILE names.
    """


@ledger.command()
@place.argument()
@output_option
def verify(ledger_place: str | Path, output: Format) -> None:
    """Recompute the ledger's sums from its rows and name every difference.

    `stepdown run` or the operator may be using it.
    """
    with reading(ledger_place) as opened:
        differences = opened.verify()
        accounts = len(opened.balances(0.0, ended=True))
    where = shown(ledger_place)
    if output != "table":
        print_machine({"ledger": where, "accounts": accounts, "differences": differences}, output)
    else:
        for difference in differences:
            click.echo(difference)
        if not differences:
            click.echo(f"{where}: {_count(accounts, 'account')}; every sum agrees with its rows.")
    if differences:
        raise CommandError(f"{where}: {len(differences)} of the ledger's sums do not agree. Keep the file, and report it")


@ledger.command()
@place.argument()
@click.option("--accept-loss", is_flag=True, help="The ledger that was here is lost: what its witness knows counts as spent.")
def init(ledger_place: str | Path, accept_loss: bool) -> None:
    """Make an empty ledger; or accept that the one before it is lost.

    The operator makes its ledger itself, and grants nothing from an empty one while its witness knows of money that was
    granted. Bring the ledger back from a backup then. If there is none, --accept-loss says that everything up to the witness's
    marks counts as spent, until the proxies that still have it say what became of it. The operator may be running: it hears of
    it at once.
    """
    from stepdown.ledger import Ledger

    where = shown(ledger_place)
    with unusable():
        there = _is_there(ledger_place)
        if there and not accept_loss:
            raise CommandError(f"{where}: there is a ledger already. `stepdown ledger verify {where}` says whether it is whole")
        if not there:
            Ledger.open(ledger_place, create=True).close()
        if accept_loss:
            opened = Ledger.open(ledger_place, create=False, beside=True)
            try:
                opened.accept_loss()
            finally:
                opened.close()
    made = "" if there else f"{where}: a new, empty ledger. "
    accepted = f"{where}: the loss is accepted; up to its witness's marks everything counts as spent." if accept_loss else ""
    click.echo((made + accepted).strip())


@ledger.command()
@place.argument()
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def migrate(ledger_place: str | Path, dry_run: bool) -> None:
    """Bring a ledger of an earlier version up to this one, and say what that does.

    The operator and `stepdown run` do the same when they open it. A migration adds, and changes nothing that is there, so that
    the version before can still work on the ledger.
    """
    from stepdown.ledger.migrate import bring_up

    with unusable():
        account = bring_up(ledger_place, rehearse=dry_run)
    for line in _account(account, dry_run):
        click.echo(line)


@ledger.command()
@place.argument()
@click.option("-o", "--output", required=True, metavar="FILE", help="The file to write, which must not be there; - is stdout.")
def export(ledger_place: str | Path, output: str) -> None:
    """Copy a ledger into one sealed file, whatever database it is in.

    The file is a ledger itself (SQLite): every command reads it, and `stepdown ledger import` makes a ledger of any kind of
    it. `stepdown run` or the operator may go on meanwhile: the copy is of one moment. It is a backup; restored, it is an older
    copy, and the witness sees to it that nothing is granted twice.
    """
    from stepdown.ledger import transfer

    with unusable():
        if output != "-":
            made = transfer.export(ledger_place, Path(output))
        else:
            with tempfile.TemporaryDirectory() as folder:
                made = transfer.export(ledger_place, Path(folder) / "ledger.db")
                with Path(made.where).open("rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)
    click.echo(_copied(ledger_place, "stdout" if output == "-" else output, made), err=output == "-")


@ledger.command(name="import")
@click.argument("source", metavar="SOURCE", type=LedgerPlace())
@place.argument()
def import_(source: str | Path, ledger_place: str | Path) -> None:
    """Bring all of SOURCE into LEDGER, which must be empty or not there yet.

    SOURCE is a file that `stepdown ledger export` has made, or a ledger of either kind. A ledger is moved by this: whoever
    keeps it may write no more from here on, and nobody else may begin to. Everything is checked before anything is written;
    what is refused has changed nothing.
    """
    from stepdown.ledger import transfer

    with unusable():
        made = transfer.move(source, ledger_place)
    click.echo(f"{_copied(source, shown(ledger_place), made)}; every sum agrees with its rows")


def _is_there(ledger_place: str | Path) -> bool:
    """What is no ledger raises a LedgerError that says so."""
    from stepdown.ledger.database import open_database
    from stepdown.ledger.errors import LedgerMissing

    try:
        open_database(ledger_place, create=False, read_only=True, beside=False).close()
    except LedgerMissing:
        return False
    return True


def _account(account: "Account", dry_run: bool) -> Iterator[str]:
    if not account.steps:
        yield f"{account.where}: schema {account.found}, which is this version's; nothing to do."
        return
    newest = account.steps[-1].revision
    yield f"{account.where}: schema {account.found} {'would become' if dry_run else 'is now'} {newest}."
    for step in account.steps:
        yield f"  {step.revision}  {step.about}"
        yield from (f"        adds {each}" for each in step.adds)
    yield "Nothing was changed." if dry_run else "What was there is unchanged."


def _copied(source: str | Path, target: str, made: "Moved") -> str:
    return (
        f"{shown(source)} → {target}: {_count(made.accounts, 'account')}, {_count(made.rows, 'row')}, epoch {made.epoch}, "
        f"digest {made.digest[:16]}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
