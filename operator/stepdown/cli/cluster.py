"""How a command reaches a cluster: the options that kubectl's users know, and what is said when it cannot be read.

Everything is read with the user's own rights, by their kubeconfig; nothing is written.
"""

import functools
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stepdown.cli.errors import ClusterUnreadable

if TYPE_CHECKING:
    from stepdown.cluster.client import Cluster
    from stepdown.cluster.errors import ClusterError

T = TypeVar("T")
F = Callable[..., Any]

OPERATOR_NAMESPACE = "stepdown-system"
INSTALL = "install the chart (`helm install stepdown charts/stepdown -n stepdown-system --create-namespace`)"


@dataclass(frozen=True, slots=True)
class Reach:
    """Which cluster, and what of it. As written on the command line; None and empty: not written."""

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str = ""
    everywhere: bool = False
    operator_namespace: str = ""
    plugin: bool = False
    """Called as `kubectl stepdown`."""

    @property
    def written(self) -> bool:
        return replace(self, plugin=False) != Reach()

    @property
    def operator(self) -> str:
        """The operator's namespace."""
        return self.operator_namespace or OPERATOR_NAMESPACE

    def over(self, other: "Reach") -> "Reach":
        """This, and what it leaves open as `other` has it: options may stand before the command, too."""
        everywhere = self.everywhere or (other.everywhere and not self.namespace)
        return Reach(
            self.kubeconfig or other.kubeconfig,
            self.context or other.context,
            self.namespace or ("" if everywhere else other.namespace),
            everywhere,
            self.operator_namespace or other.operator_namespace,
            other.plugin,
        )

    def scope(self, cluster: "Cluster") -> str:
        """The namespace to look at; empty: all."""
        return "" if self.everywhere else self.namespace or cluster.namespace


def cluster_options(*, everywhere: bool) -> Callable[[F], F]:
    """The options, which the command gets as one `reach`. `everywhere`: whether it takes -A."""
    options = [
        click.option(
            "--kubeconfig", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Instead of kubectl's own."
        ),
        click.option("--context", metavar="NAME", help="Of the kubeconfig, instead of the current one."),
        click.option("-n", "--namespace", default="", metavar="NAME", help="Instead of the context's own."),
        click.option(
            "--operator-namespace", default="", metavar="NAME", help=f"Where the operator runs. [default: {OPERATOR_NAMESPACE}]"
        ),
    ]
    if everywhere:
        options.append(click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="Every namespace."))

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def collapsed(
            *arguments: Any,
            kubeconfig: Path | None,
            context: str | None,
            namespace: str,
            operator_namespace: str,
            everywhere: bool = False,
            **others: Any,
        ) -> Any:
            if namespace and everywhere:
                raise click.UsageError("-n names one namespace and -A means all of them: write one of the two.")
            written = Reach(kubeconfig, context, namespace, everywhere, operator_namespace)
            before = click.get_current_context().find_object(Reach) or Reach()
            return function(*arguments, reach=written.over(before), **others)

        for option in reversed(options):
            option(collapsed)
        return collapsed

    return decorate


def source(reach: Reach, roots: tuple[str, ...], **folders: object) -> bool:
    """True: the cluster is meant; False: a folder. `folders`: options that only a folder has, by name without dashes."""
    if not roots:
        for name, value in folders.items():
            if value is not None:
                raise click.UsageError(f"--{name} goes with a folder (-f); without one the cluster is read.")
        return True
    if reach.written:
        raise click.UsageError("-f reads a folder, and the options of a cluster have no meaning there: leave out one of them.")
    return False


def asked(reach: Reach, work: "Callable[[Cluster], Awaitable[T]]") -> T:
    """What `work` finds in the cluster; what is wrong with the cluster becomes the command's error."""
    import asyncio

    from stepdown.cluster.errors import ClusterError

    try:
        return asyncio.run(_connected(reach, work))
    except ClusterError as error:
        raise ClusterUnreadable(explained(error, reach)) from None


async def _connected(reach: Reach, work: "Callable[[Cluster], Awaitable[T]]") -> T:
    from stepdown.cluster.client import Cluster

    async with Cluster.connect(reach.kubeconfig, reach.context) as cluster:
        return await work(cluster)


async def together(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    """All at once; where one fails, none goes on behind the error that is told."""
    import asyncio

    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def explained(error: "ClusterError", reach: Reach) -> str:
    """One sentence: what could not be had, and what to do about it."""
    from stepdown.cluster.errors import Forbidden, NotConfigured, NotServed, Unauthorized, Unavailable

    said = str(error).rstrip(".")
    match error:
        case NotConfigured():
            return f"{said}." if reach.plugin else f"{said}; or name a folder with -f."
        case NotServed():
            return f"Stepdown's kinds are not in this cluster ({said}): {INSTALL}, or choose another cluster with --context."
        case Unauthorized():
            return f"the cluster does not know you ({said}): log in again, or choose another user with --context."
        case Forbidden():
            wider = "name one of your namespaces with -n, or " if reach.everywhere else ""
            return f"you may not do this: {said}; {wider}have somebody bind the ClusterRole stepdown-view to you."
        case Unavailable():
            return f"the cluster does not answer ({said}): see whether `kubectl get --raw /readyz` works, and try again."
    return f"{said}."


def note(text: str) -> None:
    """To stderr: data that goes on to a script stays data."""
    click.echo(f"note: {text}", err=True)
