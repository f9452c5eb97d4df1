"""The tree of commands. Each is imported when it is called: `stepdown run` must not pay for rich, nor help for pydantic.

The same tree, cut to what asks a cluster, is kubectl's plugin: `kubectl stepdown`.
"""

import importlib
from dataclasses import replace
from typing import Any

import click

from stepdown import __version__
from stepdown.cli.cluster import Reach, cluster_options

COMMANDS = {
    "run": "stepdown.cli.run:run",
    "validate": "stepdown.cli.validate:validate",
    "explain": "stepdown.cli.explain:explain",
    "status": "stepdown.cli.status:status",
    "report": "stepdown.cli.report:report",
    "statement": "stepdown.cli.statement:statement",
    "reconcile": "stepdown.cli.reconcile:reconcile",
    "key": "stepdown.cli.key:key",
    "ledger": "stepdown.cli.ledger:ledger",
    "operator": "stepdown.cli.operator:operator",
    "completion": "stepdown.cli.completion:completion",
    "version": "stepdown.cli.app:version",
}
"""In the order in which `stepdown --help` shows them: what people use most comes first."""

PLUGIN = ("explain", "status", "report", "statement", "version")
"""What `kubectl stepdown` has of them."""
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class LazyGroup(click.Group):
    """A group whose commands are imported by name."""

    names: tuple[str, ...] = tuple(COMMANDS)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None or cmd_name not in self.names:
            return None
        module, _, attribute = place.partition(":")
        command: Any = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


class PluginGroup(LazyGroup):
    names = PLUGIN


@click.group(cls=LazyGroup, context_settings=_CONTEXT)
@click.version_option(__version__, message="stepdown %(version)s")
def stepdown() -> None:
    """Keeps LLM spending under its ceiling without taking the answer away.

    \b
    Exit codes: 0 all is well; 1 a problem was found; 2 the command was called wrongly;
                3 the ledger cannot be used; 4 the address cannot be listened on;
                5 the cluster cannot be read.
    """


@click.group(cls=PluginGroup, context_settings=_CONTEXT)
@click.version_option(__version__, message="stepdown %(version)s")
@cluster_options(everywhere=True)
@click.pass_context
def kubectl_stepdown(ctx: click.Context, reach: Reach) -> None:
    """What a cluster's LLM routes are answered by, what they spend, and why.

    Reads with your own rights, and writes nothing. The options of the cluster may stand after the command as well.

    \b
    Exit codes: 0 all is well; 1 a problem was found; 2 the command was called wrongly;
                5 the cluster cannot be read.
    """
    ctx.obj = replace(reach, plugin=True)


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"stepdown {__version__}")
