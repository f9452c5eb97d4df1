"""A PostgreSQL of one's own, for tests: a server in a temporary folder, on a Unix socket that only this process's tests use.

It needs the binaries of Debian's package, which it installs for a user who may. Where that cannot be, what needs it fails and
says so; `STEPDOWN_TEST_POSTGRES=skip` skips it.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from devcluster import debian
from devcluster.errors import MachineError

PACKAGE = "postgresql"
START_S = 30.0
LOCKED = "locked"
"""The one role that needs a password. It is not there yet."""


class Server:
    """One server; `database()` makes an empty database in it."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        """`durable`: what is committed is on the disk, as in earnest."""
        self.folder, self.bin, self._durable = folder, _binaries(), durable
        self._as = _as_somebody(folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0

    def make(self) -> None:
        self._run(
            f"{self.bin}/initdb", "-D", str(self.folder / "data"), "-U", "stepdown", "-A", "trust", "-E", "UTF8", "--no-sync"
        )
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text(f"local all {LOCKED} scram-sha-256\n{rules.read_text()}")

    def standby(self) -> "Server":
        """A copy that follows this one from now on; not started yet. To be ended with `remove`."""
        made = Server(Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")))
        copied, now = ("-D", str(made.folder / "data"), "-R"), ("-c", "fast", "--no-sync")
        made._run(f"{self.bin}/pg_basebackup", *copied, *now, "-h", str(self.folder), "-U", "stepdown")
        return made

    def wait_for(self, primary: "Server") -> None:
        """Until this standby has everything that the other has written."""
        with (
            psycopg.connect(primary._url("postgres"), autocommit=True) as theirs,
            psycopg.connect(self._url("postgres"), autocommit=True) as ours,
        ):
            (written,) = theirs.execute("SELECT pg_current_wal_lsn()::text").fetchone() or ("",)
            ends_s = time.monotonic() + START_S
            while ours.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [written]).fetchone() != (True,):
                assert time.monotonic() < ends_s, f"the standby does not come to {written}"
                time.sleep(0.02)

    def promote(self) -> None:
        """The standby takes over. Returns when it takes writes."""
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            assert connection.execute("SELECT pg_promote(true, 20)").fetchone() == (True,)

    def start(self) -> None:
        """Returns when it answers."""
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}"]
        options += [] if self._durable else ["-c", "fsync=off"]
        command = [*self._as, f"{self.bin}/postgres", "-D", str(self.folder / "data"), *options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        ends_s = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self._url("postgres"), connect_timeout=1).close()
            except psycopg.OperationalError:
                if time.monotonic() > ends_s or self._process.poll() is not None:
                    raise RuntimeError(f"PostgreSQL does not start: {(self.folder / 'log').read_text()[-2000:]}") from None
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """At once: sessions are broken, nothing is flushed, as when the machine is lost. The next start recovers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(20)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Every process of it stands still: connections stay open, and nothing is answered."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        pids = [self._process.pid, *map(int, children)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._count += 1
        name = f"t{self._count}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self._url(name)

    def _url(self, database: str) -> str:
        return f"postgresql://stepdown@/{database}?host={self.folder}"

    def _run(self, *command: str) -> None:
        subprocess.run([*self._as, *command], check=True, stdout=subprocess.DEVNULL, cwd=self.folder)


def _binaries() -> Path:
    found = _find()
    if found is None:
        try:
            debian.install({PACKAGE: PACKAGE})
        except MachineError as error:
            pytest.fail(f"No PostgreSQL server on this machine. {error} Or skip what needs it: STEPDOWN_TEST_POSTGRES=skip")
        found = _find()
        assert found is not None, f"Debian's {PACKAGE} has brought no server"
    return found


def _find() -> Path | None:
    """The newest that Debian has installed, else what is in the PATH."""
    there = shutil.which("postgres")
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin/postgres") if path.parts[-3].isdecimal()]
    newest = max(found, key=lambda path: int(path.parts[-3]), default=Path(there) if there else None)
    return newest.parent if newest is not None else None


def _as_somebody(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root: then it is run as the user of the package, or nobody."""
    if os.geteuid() != 0:
        return []
    names = {each.pw_name: each for each in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    if os.environ.get("STEPDOWN_TEST_POSTGRES") == "skip":
        pytest.skip("STEPDOWN_TEST_POSTGRES=skip")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path has at most 107 bytes
    server = Server(folder)
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.remove()
