"""Who this proxy process is to the ledger: an instance id, and whether the log on disk lets it take up an old one.

An id is resumed only by the process that holds the lock, in the same pod, on the same boot, from the very file that was written
(`wal.read`); then what was in flight is charged. In every other case the old id is lost: nothing of it is used again, its
lease stays charged at the keeper, and a new id begins. The app opens it at start, the syncer renews it when the keeper has
fenced it.
"""

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

import msgspec

from stepdown.model.sync import pod_mark
from stepdown.proxy import wal
from stepdown.proxy.books import Books
from stepdown.proxy.clock import Clock, boot_id
from stepdown.proxy.records import Identity


class StateDirBusy(Exception):
    """Another process has this directory."""


class StateDir:
    """The directory of one proxy process: a lock, a log, and the log that was lost last, kept for an administrator."""

    __slots__ = ("_clock", "_identity", "_lock", "_path", "books", "charged_on_resume", "log", "lost_because", "resumed")

    def __init__(self, path: Path, clock: Clock, *, pod_uid: str = "", boot: str | None = None) -> None:
        """Takes the lock and opens the log, resumed or new.

        Raises StateDirBusy, LogUnavailable (the disk is full) or OSError (the directory cannot be made).
        """
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._clock = clock
        self._identity = Identity(instance="", boot_id=boot_id() if boot is None else boot, pod_uid=pod_uid)
        self._lock = _locked(path / "lock")
        self.lost_because = ""
        """Why an old log could not be resumed; empty: there was none, or it was resumed."""
        self.charged_on_resume = 0
        """Requests that were in flight when the process died, charged as estimated."""
        try:
            resumed = self._resume()
            self.resumed = resumed is not None
            instance, self.books = resumed or (new_instance(pod_uid), Books())
            self.log = self._new_log(instance, self.books)
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def instance(self) -> str:
        return self.log.identity.instance

    def renew(self) -> Books:
        """The keeper has fenced this instance: a new id with a log of its own, and the requests in flight go over to it.

        Raises LogUnavailable; then the old one stays, and the till refuses for want of a lease until a later try succeeds.
        """
        heir = self.books.succeed()
        state = msgspec.structs.replace(heir.state(), open=self.books.state().open)
        log = wal.Log(
            self._path / "log", self._named(new_instance(self._identity.pod_uid)), heir, self._clock.boot_s, state=state
        )
        self.log.close(finished=False)
        heir.adopt(self.books)
        self.log, self.books = log, heir
        return heir

    def close(self, *, finished: bool) -> None:
        """`finished`: the keeper has closed this instance; the next start takes a new id. Closing twice does nothing."""
        self.log.close(finished=finished)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _resume(self) -> tuple[str, Books] | None:
        path = self._path / "log"
        if not path.exists():
            return None
        try:
            books = wal.read(path, self._identity)
        except wal.LogClosed:
            return None
        except wal.LogLost as lost:
            self.lost_because = f"{path}: {lost}"
            with suppress(OSError):
                path.replace(self._path / "log.lost")
            return None
        instance = wal.instance_of(path)
        self.charged_on_resume = books.charge_open()
        return instance, books

    def _named(self, instance: str) -> Identity:
        return msgspec.structs.replace(self._identity, instance=instance)

    def _new_log(self, instance: str, books: Books) -> wal.Log:
        return wal.Log(self._path / "log", self._named(instance), books, self._clock.boot_s)


def new_instance(pod_uid: str = "") -> str:
    """An id that no other instance has ever had. In a pod it says whose it is, so that no other pod can sync in its name."""
    return f"{pod_mark(pod_uid)}.{secrets.token_hex(8)}" if pod_uid else secrets.token_hex(8)


def _locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StateDirBusy(
            f"{path.parent} belongs to a proxy that is running: stop it, or give this one a state directory of its own"
        ) from error
    return fd
