"""Kubernetes' own programs: where they are, and how they come to be there. `devcluster.binaries.helm()` gives a path.

In this order: the folder that KUBEBUILDER_ASSETS names, what was built before, a build from the Go modules in `modules/`.
Everything that a call lacks is built in one go, by one process, with a build cache that all of them share.
"""

import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from devcluster import cache, toolchain
from devcluster.errors import BuildError

COMPILE = "-dwarf=false -l"
"""No debug data and no inlining: an API server compiles in half the time, and what it then loses is nothing to a test."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program of a module in `modules/`, whose go.mod and go.sum say exactly what it is made of."""

    name: str
    module: str
    package: str
    pinned: str
    """The module whose version is the program's; none for one that is all our own."""
    stamp: tuple[str, ...] = ()
    """Go variables that tell the program its version."""

    @property
    def folder(self) -> Path:
        return toolchain.MODULES / self.module

    @property
    def version(self) -> str:
        if not self.pinned:
            return "v1.0.0"
        found = re.search(rf"\b{re.escape(self.pinned)} (v[\w.+-]+)", (self.folder / "go.mod").read_text())
        if found is None:
            raise BuildError(f"{self.folder / 'go.mod'} does not require {self.pinned}")
        return found[1]

    @property
    def key(self) -> str:
        """Changes with anything that the program is made of."""
        digest = hashlib.sha256(repr((self.package, self.stamp, COMPILE)).encode())
        for source in sorted(self.folder.iterdir()):
            digest.update(source.read_bytes())
        return f"{self.name}-{self.version}-{digest.hexdigest()[:12]}"

    @property
    def cached(self) -> Path:
        return cache.folder("bin") / self.key / self.name

    @property
    def link(self) -> str:
        major, minor = self.version.removeprefix("v").split(".")[:2]
        said = {"gitVersion": self.version, "version": self.version, "gitMajor": major, "gitMinor": minor}
        return " ".join(["-s -w", *(f"-X {variable}={said[variable.rpartition('.')[2]]}" for variable in self.stamp)])


def _kubernetes(name: str) -> Tool:
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    stamp = tuple(f"{package}.{variable}" for package in packages for variable in ("gitVersion", "gitMajor", "gitMinor"))
    return Tool(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", "k8s.io/kubernetes", stamp)


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("etcd", "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
        *map(
            _kubernetes,
            ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet", "kube-proxy"),
        ),
        Tool("coredns", "coredns", "stepdown.local/devcluster/coredns", "github.com/coredns/coredns"),
        Tool("pause", "pause", "stepdown.local/devcluster/pause", ""),
        Tool("helm", "helm", "helm.sh/helm/v4/cmd/helm", "helm.sh/helm/v4", ("helm.sh/helm/v4/internal/version.version",)),
        Tool("kind", "kind", "sigs.k8s.io/kind", "sigs.k8s.io/kind"),
    )
}

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NODE = (*CONTROL_PLANE, "kubelet", "kube-proxy", "coredns", "pause")
SIZES = {"control-plane": CONTROL_PLANE, "node": NODE}


def kubectl() -> Path:
    return build(["kubectl"])["kubectl"]


def helm() -> Path:
    return build(["helm"])["helm"]


def find(name: str) -> Path | None:
    """Where the program is, or None if it has to be built first."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and os.access(Path(assets) / name, os.X_OK):
        given = Path(assets, name).resolve()
        if name == "kube-apiserver":
            _check_skew(given)
        return given
    cached = TOOLS[name].cached
    return cached if cached.exists() else None


def build(names: Iterable[str]) -> dict[str, Path]:
    """The programs' paths, after building those that are nowhere yet."""
    names = list(names)
    if unknown := [name for name in names if name not in TOOLS]:
        raise BuildError(f"There is no program {unknown[0]!r}; there are {', '.join(TOOLS)}.")
    if any(find(name) is None for name in names):
        with cache.lock("build"):  # another process may have built them while we waited: hence the second look
            missing: dict[str, list[Tool]] = defaultdict(list)
            for name in names:
                if find(name) is None:
                    missing[TOOLS[name].module].append(TOOLS[name])
            for tools in missing.values():
                _compile(tools)
    return {name: path for name in names if (path := find(name)) is not None}


def _compile(tools: list[Tool]) -> None:
    """Programs of one module, in one `go build`: linking one overlaps compiling the next."""
    began_s, scratch = time.monotonic(), cache.root() / "building"
    cache.say(f"building {', '.join(f'{tool.name} {tool.version}' for tool in tools)} (once: it stays in {cache.root()})")
    shutil.rmtree(scratch, ignore_errors=True)  # a killed build's; we hold the lock
    scratch.mkdir()
    command = [str(toolchain.go()), "build", "-ldflags", tools[0].link, f"-gcflags=all={COMPILE}"]
    command += ["-o", f"{scratch}/" if len(tools) > 1 else str(scratch / tools[0].name), *(tool.package for tool in tools)]
    if (nice := shutil.which("nice")) is not None:
        command = [nice, "-n", "5", *command]
    done = subprocess.run(
        command, cwd=tools[0].folder, env=toolchain.environment(), stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        problem = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("go: downloading"))
        raise BuildError(f"{shlex.join(command)} in {tools[0].folder} failed:\n{problem}")
    for tool in tools:
        with cache.staged(tool.cached.parent) as place:
            (scratch / tool.name).rename(place / tool.name)
    scratch.rmdir()
    cache.say(f"built in {time.monotonic() - began_s:.0f} s")


@functools.cache
def _check_skew(apiserver: Path) -> None:
    """A controller manager may be one minor version behind its API server, and never ahead."""
    said = subprocess.run([apiserver, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v1\.(\d+)\.", said)
    ours = int(TOOLS["kube-apiserver"].version.split(".")[1])
    if found is None or int(found[1]) not in (ours, ours + 1):
        raise BuildError(
            f"KUBEBUILDER_ASSETS: {apiserver} says it is {said.strip() or 'nothing'!r}; beside our controllers it must be "
            f"v1.{ours} or v1.{ours + 1}. Give it such a version, or unset KUBEBUILDER_ASSETS and it is built."
        )
