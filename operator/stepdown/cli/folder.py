"""How every command reads `-f DIR`, once, and what it says when it cannot."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepdown.cli.errors import CommandError

if TYPE_CHECKING:
    from stepdown.local.world import Gathered
    from stepdown.plan.world import AcceptedSpec, LedgerView


def read_folder(
    roots: Sequence[str], proxy: str, *, strict: bool = True, accepted: "Mapping[str, AcceptedSpec] | None" = None
) -> "Gathered":
    """The folder as it is now. With `strict`, a folder without any valid object ends the command.

    `accepted`: what the ledger remembers of the objects, so that they are what a running `stepdown run` takes them for.
    """
    from stepdown.local.banner import nothing_valid
    from stepdown.local.documents import Folder, FolderMissing
    from stepdown.local.world import Gatherer, NoSuchProxy
    from stepdown.sync.clock import now_ns

    try:
        gatherer = Gatherer(proxy=proxy, environment=os.environ)
        gatherer.remember(accepted or {})
        gathered = gatherer.gather(Folder(roots).load(now_ns()), accepted)
    except (FolderMissing, NoSuchProxy) as error:
        raise click.UsageError(str(error)) from None
    if strict and not gathered.objects:
        raise CommandError(nothing_valid(roots, [str(problem) for problem in gathered.problems]))
    return gathered


def ledger_view(ledger_file: str | Path | None, now_s: float) -> "LedgerView":
    """What the ledger knows: of the file that was named, or of ./stepdown.db where there is one; else of an untouched one."""
    from stepdown.cli.ledger import DEFAULT_FILE, reading
    from stepdown.plan.world import LedgerView
    from stepdown.sync.view import ledger_view as view

    if ledger_file is None and not Path(DEFAULT_FILE).exists():
        return LedgerView()
    with reading(ledger_file or Path(DEFAULT_FILE)) as ledger:
        return view(ledger, now_s)
