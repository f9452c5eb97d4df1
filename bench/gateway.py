"""The proxy under test as it runs in a pod: a process of its own that syncs with the ledger's keeper over a Unix socket."""

import http.client
import secrets
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.machine import GATEWAY_CORE, LOAD_CORE, BenchError, Process, free_port
from bench.policy import FLEET

UPSTREAM_KEY = "sk-upstream"
_EXTENSION = "stepdown__mypyc"
"""The library that all compiled modules share."""


class Gateway:
    """A keeper with a fresh ledger on the load's core, and one proxy on its own core; `folder` keeps their state and logs."""

    def __init__(self, folder: Path, base_url: str, compiled: Path | None = None, *, budget: bool = True) -> None:
        """`compiled`: where the compiled wheel lies unpacked (`make compiled`); None: the checkout is measured.

        `budget`: whether the route has one.
        """
        self._folder, self._base_url, self._compiled, self._budget = folder, base_url, compiled, budget
        self.key = f"sd-{secrets.token_hex(32)}"
        self.port = free_port()

    def __enter__(self) -> Self:
        keys = self._folder / "keys"
        keys.mkdir(parents=True)
        (keys / "standard").write_text(UPSTREAM_KEY)
        # Unix sockets have short names: not below a checkout that may lie deep.
        self._sockets = tempfile.TemporaryDirectory(prefix="stepdown-bench-")
        sock = Path(self._sockets.name) / "sync"
        keeper = ["--socket", str(sock), "--ledger", str(self._folder / "ledger.db"), "--base-url", self._base_url]
        argv = [sys.executable, "-m", "bench.keeper", *keeper, "--key", self.key, *([] if self._budget else ["--unbudgeted"])]
        self._keeper = Process("keeper", argv, LOAD_CORE, self._folder, sock.exists)
        proxy = ["--listen", f"127.0.0.1:{self.port}", "--sync-socket", str(sock), "--state-dir", str(self._folder / "state")]
        argv = [sys.executable, "-m", "stepdown.proxy", *proxy, "--fleet", FLEET, "--key-dir", str(keys)]
        env = {"PYTHONPATH": str(self._compiled)} if self._compiled else {}
        self.process = Process("proxy", argv, GATEWAY_CORE, self._folder, self._ready, env)
        self._keeper.__enter__()
        try:
            self.process.__enter__()
            self._check_build()
        except BaseException:
            self._keeper.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.__exit__(kind, error, trace)
        self._keeper.__exit__(kind, error, trace)
        self._sockets.cleanup()

    def _check_build(self) -> None:
        """What is measured must be what the figures will say it is."""
        runs_compiled = _EXTENSION in Path(f"/proc/{self.process.pid}/maps").read_text()
        if runs_compiled != (self._compiled is not None):
            raise BenchError(
                f"the proxy runs {'compiled' if runs_compiled else 'pure'} modules, which was not asked for: is {_EXTENSION}"
                f" in {self._compiled or 'a folder on PYTHONPATH'}? `make bench` sees to it"
            )

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
