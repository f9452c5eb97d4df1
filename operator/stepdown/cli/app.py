"""The tree of commands. Each is imported when it is called: `stepdown run` must not pay for rich, nor help for pydantic."""

import importlib
from typing import Any

import click

from stepdown import __version__

COMMANDS = {
    "run": "stepdown.cli.run:run",
    "validate": "stepdown.cli.validate:validate",
    "explain": "stepdown.cli.explain:explain",
    "status": "stepdown.cli.status:status",
    "report": "stepdown.cli.report:report",
    "key": "stepdown.cli.key:key",
    "ledger": "stepdown.cli.ledger:ledger",
    "operator": "stepdown.cli.operator:operator",
    "completion": "stepdown.cli.completion:completion",
    "version": "stepdown.cli.app:version",
}
"""In the order in which `stepdown --help` shows them: what people use most comes first."""


class LazyGroup(click.Group):
    """A group whose commands are imported by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: Any = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="stepdown %(version)s")
def stepdown() -> None:
    """Keeps LLM spending under its ceiling without taking the answer away.

    \b
    Exit codes: 0 all is well; 1 a problem was found; 2 the command was called wrongly;
                3 the ledger cannot be used; 4 the address cannot be listened on.
    """


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"stepdown {__version__}")
