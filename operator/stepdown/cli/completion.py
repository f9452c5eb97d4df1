"""`stepdown completion bash|zsh|fish`: click's own completion scripts, printed so that a shell can source them."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  source <(stepdown completion bash)
    zsh:   source <(stepdown completion zsh)
    fish:  stepdown completion fish | source
    """
    from stepdown.cli.app import stepdown

    maker = get_completion_class(shell)
    assert maker is not None
    click.echo(maker(stepdown, {}, "stepdown", "_STEPDOWN_COMPLETE").source())
