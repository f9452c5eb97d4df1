"""`python -m devcluster`, from the repository's root: what `make cluster-up` and `cluster-down` run, and paths for scripts."""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from devcluster import binaries, cache, guard, image, kind, machine, ports
from devcluster.cluster import Cluster, launched, without_proxy
from devcluster.errors import ClusterError, StateError
from devcluster.layout import Layout, default_state
from devcluster.options import Options


def main(arguments: Sequence[str] | None = None) -> int:
    asked, rest = _parser().parse_known_args(arguments)
    if rest and asked.run not in (_helm, _kubectl):
        _parser().error(f"unknown arguments: {' '.join(rest)}")
    asked.rest = rest
    run: Callable[[argparse.Namespace], None] = asked.run
    try:
        run(asked)
    except ClusterError as problem:
        print(f"devcluster: {problem}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m devcluster", description="A real Kubernetes on this machine (docs/devcluster.md)."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], about: str, state: bool = False, forwards: bool = False
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about, add_help=not forwards, allow_abbrev=not forwards)
        made.set_defaults(run=run)
        if state:
            made.add_argument(
                "--state-dir", type=Path, default=default_state(), help="the cluster's folder (default %(default)s)"
            )
        return made

    up = command("up", _up, "start a cluster that runs until `down`; prints how to use it", state=True)
    up.add_argument(
        "--size", choices=list(binaries.SIZES), default="control-plane", help="node: with pods that run; needs root"
    )
    up.add_argument(
        "--with", dest="how", choices=["auto", "kind", "binaries"], default="auto", help="auto: kind if Docker answers"
    )
    up.add_argument("--audit-policy", type=Path, help="an audit policy; the log is audit.log in the cluster's folder")
    up.add_argument("--apiserver-arg", action="append", default=[], metavar="FLAG", help="a further flag of the API server")
    command("down", _down, "end the cluster and remove what it left", state=True)
    command("status", _status, "say whether a cluster runs, and where", state=True)
    build = command("build", _build, "build what a size, or the named programs, need, and print their paths")
    build.add_argument("names", nargs="*", metavar="PROGRAM", help=", ".join(binaries.TOOLS))
    build.add_argument("--size", choices=list(binaries.SIZES))
    made = command(
        "image", _image, "build the project's image from operator/Dockerfile, and give it to the cluster", state=True
    )
    made.add_argument("--tag", default=image.TAG, help="(default %(default)s)")
    made.add_argument("--archive", type=Path, help="give the cluster this docker-archive instead, and build nothing")
    made.add_argument("--no-load", action="store_true", help="only build, and print where the docker-archive is")
    command("can-node", lambda _: machine.check_node(), "say whether this machine can be a node, and if not, why")
    command("kubectl", _kubectl, "kubectl, of the cluster's version and for the cluster", state=True, forwards=True)
    command("helm", _helm, "Helm, for the cluster", state=True, forwards=True)
    command("clean", _clean, "remove everything that was built: the next start builds anew")
    return parser


def _up(asked: argparse.Namespace) -> None:
    state: Path = asked.state_dir.absolute()
    if asked.how == "kind" or (asked.how == "auto" and asked.size == "node" and kind.docker_answers()):
        kind.up(state)
        kubeconfig = state / "kubeconfig"
    else:
        policy = None if asked.audit_policy is None else str(asked.audit_policy.absolute())
        with launched(state, Options(asked.size, True, policy, tuple(asked.apiserver_arg))) as layout:
            kubeconfig = layout.kubeconfig
    print(f"export KUBECONFIG={shlex.quote(str(kubeconfig))}")


def _down(asked: argparse.Namespace) -> None:
    state: Path = asked.state_dir.absolute()
    if kind.is_kind(state):
        kind.down(state)
    elif state.exists():
        try:
            cluster = Cluster.attach(state)
        except StateError:
            _bury(Layout(state))
        else:
            cluster.down()


def _bury(layout: Layout) -> None:
    """What is left of a cluster whose supervisor and guard were both killed, or was never ready."""
    if not layout.ours:
        raise StateError(f"{layout.state} is no cluster's folder.")
    if layout.lock() is None:
        raise StateError(f"The cluster in {layout.state} is starting or ending just now. Try again in a moment.")
    machine = ports.claim("node")  # if another cluster has a node here, then the machine's network is that one's by now
    guard.clean(layout, node=machine is not None)


def _status(asked: argparse.Namespace) -> None:
    state: Path = asked.state_dir.absolute()
    if kind.is_kind(state):
        print(f"kind cluster {kind.name(state)}: KUBECONFIG={state / 'kubeconfig'}")
        return
    cluster = Cluster.attach(state)
    print(f"{cluster.size} at {cluster.server}: KUBECONFIG={cluster.kubeconfig}")
    cluster.release()


def _build(asked: argparse.Namespace) -> None:
    names = [*asked.names, *(binaries.SIZES[asked.size] if asked.size else [])] or binaries.CONTROL_PLANE
    for name, path in binaries.build(names).items():
        print(f"{name}\t{path}")


def _image(asked: argparse.Namespace) -> None:
    state: Path = asked.state_dir.absolute()
    if kind.is_kind(state) and asked.archive is None:
        kind.build_and_load(state, asked.tag)
        return
    archive: Path = asked.archive or image.project(asked.tag)
    if not asked.no_load:
        image.load(state, archive)
    print(archive)


def _kubectl(asked: argparse.Namespace) -> None:
    _run(binaries.kubectl(), asked)


def _helm(asked: argparse.Namespace) -> None:
    _run(binaries.helm(), asked)


def _run(program: Path, asked: argparse.Namespace) -> None:
    kubeconfig = asked.state_dir.absolute() / "kubeconfig"
    environment = {**without_proxy(os.environ), "KUBECONFIG": str(kubeconfig)} if kubeconfig.exists() else os.environ
    os.execve(program, [program.name, *asked.rest], environment)


def _clean(asked: argparse.Namespace) -> None:
    with cache.lock("build"):
        for entry in cache.root().iterdir():
            shutil.rmtree(entry)


if __name__ == "__main__":
    sys.exit(main())
