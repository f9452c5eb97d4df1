"""The process whose children a cluster's parts are: starts them, waits until they are ready, then does what it is told.

    python -m devcluster.supervisor STATE OPTIONS

cluster.py starts it. It runs until nobody holds it any more: its stdin, and each connection to its socket that said `hold`,
counts until it is closed, which the kernel does for a process that is killed. With `keep` it runs until it is told `down`.
If it is killed itself, the kernel kills its children, and guard.py cleans up.
"""

import contextlib
import datetime
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from devcluster import binaries, guard, ports, processes, record
from devcluster.certificates import Authority
from devcluster.client import Client
from devcluster.components import APISERVER, Component, address, components, identities
from devcluster.errors import ClusterError, StartError, StateError
from devcluster.layout import Layout
from devcluster.node import Node
from devcluster.options import Options
from devcluster.waiting import until

_AGAIN_S = 1.0


class Child:
    """A part of the cluster that is started again when it ends, unless it was told to stop."""

    def __init__(self, component: Component, layout: Layout) -> None:
        self.component = component
        self.log = layout.log(component.name)
        self._layout = layout
        self._wanted = False
        self._due_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ended(self) -> bool:
        """By itself: nobody told it to."""
        return self._wanted and not self.running

    def start(self) -> None:
        self._wanted = True
        if not self.running:
            self._process = processes.spawn(self.component.command, self.log, cwd=self.component.cwd)
            record.write(self._layout, self.component.name, processes.identify(self._process.pid))
            self._due_s = time.monotonic() + _AGAIN_S

    def start_again(self) -> None:
        """At most once a second."""
        if self.ended and time.monotonic() >= self._due_s:
            self.start()

    def stop(self, grace_s: float = 0.0) -> None:
        self._wanted = False
        if self._process is None or not self.running:
            return
        if grace_s > 0:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        self._process.kill()
        self._process.wait()

    def signal(self, number: int) -> None:
        if self._process is None or not self.running:
            raise StateError(f"{self.component.name} does not run")
        self._process.send_signal(number)


class Supervisor:
    def __init__(self, layout: Layout, options: Options) -> None:
        self._layout = layout
        self._options = options
        self._children: dict[str, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._holders: set[object] = set()
        self._ready = False
        self._over = False
        self._locks: list[object] = []
        """Theirs is to stay open as long as this process lives."""

    def run(self) -> None:
        """Until it is over; then the children end, and the guard cleans up once this process has ended."""
        self._take_hold()
        try:
            self._serve()
        finally:
            for child in reversed(self._children.values()):
                child.stop()
            if self._guard.poll() is not None:  # somebody ended it, so this is up to us
                guard.clean(self._layout, self._options.size == "node")

    def _serve(self) -> None:
        for _ in self._start():
            self._turn(0.03)
            if self._over:
                break
            self._check_children()
        else:
            self._ready = True
            _say(ready=True)
            _detach(self._layout.log("supervisor"))
        while not self._over:
            self._turn(0.3)
            for child in self._children.values():
                child.start_again()

    def _take_hold(self) -> None:
        """Everything that must be ours, before anything is changed: the folder and, for a node, the machine's network."""
        layout, node = self._layout, self._options.size == "node"
        machine = ports.claim("node") if node else None
        if node and machine is None:
            raise StateError(
                "A cluster of size node already runs on this machine, and there can be one: its network is the machine's."
            )
        layout.make()
        held = layout.lock()
        if held is not None and layout.control.exists():  # left by a cluster whose supervisor and guard were both killed
            guard.clean(layout, node)
            os.close(held)
            layout.make()
            held = layout.lock()
        if held is None:
            raise StateError(f"A cluster already runs in {layout.state}. End it, or give another folder with --state-dir.")
        inherited = [held, *([machine.fileno()] if machine is not None else [])]
        self._guard, pipe = guard.start(layout.state, node, inherited)
        self._locks += [held, machine, pipe]
        self._watch(os.pidfd_open(self._guard.pid), self._end)
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(layout.control))
        server.listen(16)
        self._watch(server, lambda: self._accept(server))
        self._holders.add(sys.stdin)
        self._watch(sys.stdin, lambda: self._release(sys.stdin))

    # What starts, in order. At each `yield`, requests are answered and ends are noticed.

    def _start(self) -> Iterator[None]:
        layout, options = self._layout, self._options
        programs = binaries.build(binaries.SIZES[options.size])
        node = Node(layout, programs) if options.size == "node" else None
        if node is not None:
            node.prepare()
        where = address(options)
        port, reserved = ports.reserve(where)
        self._locks.append(reserved)
        server = f"https://{where}:{port}"
        authority = Authority(layout.pki, datetime.datetime.now(datetime.UTC))  # noqa: TID251 (certificates begin now)
        known = identities(layout, authority, server)
        client = Client(server, known.ca, known.admin.cert, known.admin.key)
        for component in components(layout, programs, known, port, options).values():
            self._add(component)
            if component.name == APISERVER:
                yield from until(lambda: client.exists("/readyz"), "the API server to be ready")
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        yield from until(lambda: client.exists(account), "the controllers to make the first service account")
        if node is not None:
            self._add(node.component(known))
            yield from node.furnish(client)
        about = {
            "server": server,
            "size": options.size,
            "ca": str(known.ca),
            "admin_client_cert": str(known.admin.cert),
            "admin_client_key": str(known.admin.key),
            "supervisor": os.getpid(),
        }
        draft = layout.ready.with_suffix(".new")
        draft.write_text(json.dumps(about))
        draft.rename(layout.ready)

    def _add(self, component: Component) -> None:
        child = self._children[component.name] = Child(component, self._layout)
        child.start()

    def _check_children(self) -> None:
        """Before the cluster is ready, the end of a part is the end of all: its log says why."""
        for name, child in self._children.items():
            if child.ended:
                raise StartError(f"{name} ended before the cluster was ready. Its log ends with:\n{processes.tail(child.log)}")

    # Requests and ends.

    def _watch(self, source: Any, call: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, call)

    def _turn(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def _end(self) -> None:
        self._over = True

    def _accept(self, server: socket.socket) -> None:
        connection, _ = server.accept()
        lines = connection.makefile("rwb")
        self._watch(connection, lambda: self._hear(connection, lines))

    def _hear(self, connection: socket.socket, lines: io.BufferedRWPair) -> None:
        try:
            line = lines.readline()
            if line:
                lines.write(json.dumps(self._answer(connection, json.loads(line))).encode() + b"\n")
                lines.flush()
                return
        except (OSError, ValueError):
            pass  # whoever asked is gone, or does not speak this: the same to us
        self._release(connection)
        lines.close()
        connection.close()

    def _release(self, holder: Any) -> None:
        self._selector.unregister(holder)
        if holder in self._holders:
            self._holders.remove(holder)
            self._over = self._over or not (self._holders or (self._options.keep and self._ready))

    def _answer(self, connection: socket.socket, asked: Mapping[str, Any]) -> dict[str, Any]:
        verb, name = asked.get("do"), asked.get("name", "")
        if verb == "hold":
            self._holders.add(connection)
        elif verb == "down":
            self._over = True
        elif name not in self._children:
            return {"error": f"there is no {name!r}; this cluster has {', '.join(self._children)}"}
        else:
            return self._command(verb, self._children[name], float(asked.get("grace_s", 0)))
        return {}

    def _command(self, verb: object, child: Child, grace_s: float) -> dict[str, Any]:
        try:
            match verb:
                case "start":
                    child.start()
                case "stop":
                    child.stop(grace_s)
                case "pause":
                    child.signal(signal.SIGSTOP)
                case "resume":
                    child.signal(signal.SIGCONT)
                case _:
                    return {"error": f"cannot {verb!r}"}
        except StateError as problem:
            return {"error": str(problem)}
        return {}


def _say(**answer: object) -> None:
    """To the process that started this one, and waits."""
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(answer), flush=True)


def _detach(log: Path) -> None:
    """Lets go of the terminal or pipe of whoever started this: a `make cluster-up` in a pipe would else not end."""
    with log.open("ab") as file, Path(os.devnull).open("ab") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


def main() -> int:
    if os.fork():
        return 0  # so that whoever started this has no child to wait for, however long the cluster lives
    layout, options = Layout(Path(sys.argv[1])), Options.load(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is for the process that holds us, and its end ends us
    try:
        Supervisor(layout, options).run()
    except ClusterError as problem:
        _say(failed=str(problem), error=type(problem).__name__)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
