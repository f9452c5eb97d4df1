"""The machine under the bench: tools, cores, memory and processor time of processes, and what it all ran on."""

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

GATEWAY_CORE = 0
"""The proxy under test, or nginx in its place: one core, nothing else on it."""
LOAD_CORE = 1
"""wrk, the upstream, the keeper and the bench itself."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_APT = {"nginx": "nginx-light", "wrk": "wrk", "taskset": "util-linux"}
_START_S = 30.0
_STOP_S = 10.0


class BenchError(Exception):
    """The bench cannot run, or what it measured is not what it says it is; the message says what to do."""


def check_tools(*tools: str) -> None:
    missing = [_APT[tool] for tool in tools if shutil.which(tool) is None]
    if missing:
        raise BenchError(f"needs {', '.join(missing)}: apt-get install -y --no-install-recommends {' '.join(missing)}")


def check_cores() -> None:
    cores = os.sched_getaffinity(0)
    if not {GATEWAY_CORE, LOAD_CORE} <= cores:
        raise BenchError(f"needs cores {GATEWAY_CORE} and {LOAD_CORE} to itself; this process may use {sorted(cores)}")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Process:
    """A child pinned to one core, with its log in a file; ends with the `with`."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        core: int,
        folder: Path,
        ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`env`: variables beside those of the bench."""
        self._name, self._argv, self._core, self._ready = name, argv, core, ready
        self._env = {**os.environ, **(env or {})}
        self._log = folder / f"{name}.log"

    def __enter__(self) -> Self:
        start_s = time.monotonic()
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                ["taskset", "-c", str(self._core), *self._argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env
            )
        while not self._ready():
            late = time.monotonic() - start_s > _START_S
            if late or self._child.poll() is not None:
                self._stop()
                told = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
                raise BenchError(f"{self._name} was not ready after {time.monotonic() - start_s:.1f} s: {self._log}\n{told}")
            time.sleep(0.005)
        self.start_s = time.monotonic() - start_s
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

    @property
    def pid(self) -> int:
        return self._child.pid

    def rss_mib(self) -> float:
        """Resident memory of the process and its children."""
        return sum(_rss_kib(pid) for pid in _family(self.pid)) / 1024

    def cpu_s(self) -> float:
        return sum(_cpu_s(pid) for pid in _family(self.pid))


class PeakRss:
    """The highest resident memory seen while it is on, sampled ten times a second."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._off = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.mib = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._off.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._off.wait(0.1):
            self.mib = max(self.mib, self._process.rss_mib())


def port_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def stolen_s() -> float:
    """Processor time that the hypervisor gave to others since boot, over both cores."""
    lines = re.findall(rf"^cpu[{GATEWAY_CORE}{LOAD_CORE}] (.*)$", Path("/proc/stat").read_text(), re.MULTILINE)
    return sum(int(line.split()[7]) for line in lines) / _TICKS_PER_S


def described() -> dict[str, object]:
    """What a reader needs to judge the figures."""
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("stepdown", "uvloop", "httptools", "msgspec")}
    found["python"] = platform.python_version()
    for tool, flag, pattern in (("nginx", "-v", r"nginx/(\S+)"), ("wrk", "-v", r"wrk (\S+)")):
        told = subprocess.run([tool, flag], capture_output=True, text=True, check=False)
        match = re.search(pattern, told.stdout + told.stderr)
        found[tool] = match[1] if match else "unknown"
    return found


def _family(pid: int) -> Iterator[int]:
    todo = [pid]
    while todo:
        pid = todo.pop()
        yield pid
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                todo.extend(int(child) for child in (task / "children").read_text().split())


def _rss_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        match = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(match[1]) if match else 0
    return 0


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return 0.0
