"""Completion: `stepdown completion bash|zsh|fish` prints click's own scripts for a shell to source, and
`kubectl_complete-stepdown` answers kubectl, which asks an executable of that name what may follow `kubectl stepdown`.
"""

import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

DEFAULT, NO_FILES = 0, 4
"""What kubectl makes of the answer (cobra's directives): files complete as well, or do not."""
PATIENCE_S = 2.0
"""How long a person who has pressed Tab waits for the cluster."""


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


def answer_kubectl(words: Sequence[str]) -> None:
    """`words`: what stands after `kubectl stepdown`, the last of it being typed. A line each, and the directive."""
    from stepdown.cli.app import kubectl_stepdown

    *before, typed = words or [""]
    found = ShellComplete(kubectl_stepdown, {}, "kubectl stepdown", "_STEPDOWN_COMPLETE").get_completions(before, typed)
    plain = [each for each in found if each.type == "plain"]
    for each in plain:
        sys.stdout.write(f"{each.value}\t{each.help}\n" if each.help else f"{each.value}\n")
    sys.stdout.write(f":{NO_FILES if len(plain) == len(found) else DEFAULT}\n")


def complete_route(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Routes of the cluster that begin so. Silent where they cannot be had: Tab is no place for an error."""
    if ctx.params.get("roots"):
        return []
    import asyncio

    from stepdown.cluster.errors import ClusterError

    try:
        names = asyncio.run(_route_names(ctx, incomplete))
    except (ClusterError, TimeoutError):
        return []
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


async def _route_names(ctx: click.Context, incomplete: str) -> list[str]:
    """By name in the namespace in use; by `namespace/name` once a slash is there."""
    import asyncio

    from stepdown.cli.cluster import Reach
    from stepdown.cluster.client import Cluster
    from stepdown.cluster.kinds import MODEL_ROUTE

    given: dict[str, Any] = {
        name: ctx.params.get(name) or getattr(Reach(), name) for name in ("kubeconfig", "context", "namespace")
    }
    reach = Reach(**given).over(ctx.find_object(Reach) or Reach())
    namespace, slash, _ = incomplete.rpartition("/")
    async with asyncio.timeout(PATIENCE_S), Cluster.connect(reach.kubeconfig, reach.context) as cluster:
        there = namespace or reach.namespace or cluster.namespace
        listing = await cluster.list(MODEL_ROUTE, there, metadata_only=True)
    prefix = f"{namespace}/" if slash else ""
    return [prefix + each["metadata"]["name"] for each in listing.items]
