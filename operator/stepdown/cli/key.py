"""`stepdown key new`: a caller's key, and the hash of it that may live in Git. Nothing is stored anywhere."""

import hashlib
import secrets

import click

from stepdown.cli.output import Format, output_option, print_machine

PREFIX = "sd_"
"""So that secret scanners and people can tell what leaked."""


@click.group()
def key() -> None:
    """Keys of callers (ModelRoute spec.callers)."""


@key.command()
@output_option
def new(output: Format) -> None:
    """Make a 256-bit key and print it, once, with the hash for the route."""
    made = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(made.encode()).hexdigest()
    if output != "table":
        print_machine({"key": made, "apiKeySHA256": digest}, output)
        return
    click.echo(f"key           {made}")
    click.echo(f"apiKeySHA256  {digest}")
    click.echo()
    click.echo("Give the key to the caller, who uses it as the API key of any OpenAI client. It is stored nowhere:")
    click.echo("this is the only time that it is shown. The hash belongs in the route, and may live in Git:")
    click.echo()
    click.echo("spec:")
    click.echo("  callers:")
    click.echo(f"  - apiKeySHA256: {digest}")
