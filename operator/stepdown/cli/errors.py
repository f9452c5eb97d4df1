"""What a person sees when a command fails: one block, no traceback, and an exit code that a script can use (docs/cli.md).

CommandError          1  a problem was found
├── LedgerUnusable    3  the ledger cannot be used
├── AddressInUse      4  the address cannot be listened on
└── ClusterUnreadable 5  the cluster cannot be read
click.UsageError      2  the command was called wrongly
"""

from typing import IO, Any

import click


class CommandError(click.ClickException):
    """Ends the command with a message."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(click.style("error: ", fg="red", bold=True) + self.message, file=file, err=True)


class LedgerUnusable(CommandError):
    exit_code = 3


class AddressInUse(CommandError):
    exit_code = 4


class ClusterUnreadable(CommandError):
    exit_code = 5
