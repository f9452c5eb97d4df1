"""Where the operator's own CA is kept: on the ledger's volume, or, where several replicas share a ledger, in its database.

`tls.Authority` has one of these. Replicas must have one CA: whichever of them leads next is known to every proxy already.
Whoever can read the ledger's database can then pose as the operator towards proxies, as whoever can read the volume could
before; give a certificate where that is too many.
"""

import os
from contextlib import closing
from pathlib import Path
from typing import Protocol

from stepdown.ledger import errors, shared
from stepdown.sync.errors import TlsError

STATE = "sync-ca.json"
_NAME = "sync_ca"


class Kept(Protocol):
    """A few kilobytes."""

    @property
    def scratch(self) -> Path:
        """A directory of this process's own, for files that live for a moment."""

    def read(self) -> bytes | None:
        """What is known of it without waiting for a database. Raises TlsError."""

    def keep(self, data: bytes, was: bytes | None) -> bool:
        """Durably, if it still is what it `was`; False: it is something else by now, which `read` says. Raises TlsError."""

    def __str__(self) -> str: ...


class OnVolume:
    """A file that one operator has for itself."""

    def __init__(self, path: Path) -> None:
        """`path`: a directory. Raises TlsError."""
        self.scratch, self._path = _made(path), path / STATE

    def __str__(self) -> str:
        return str(self._path)

    def read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TlsError(f"the sync CA {self} cannot be read: {error}") from error

    def keep(self, data: bytes, was: bytes | None) -> bool:
        draft = self.scratch / f".{STATE}"
        try:
            write(draft, data)
            draft.replace(self._path)
            _sync_directory(self.scratch)
        except OSError as error:
            raise TlsError(f"the sync CA cannot be kept in {self}: {error}") from error
        return True


class InLedger:
    """A row of the ledger's database."""

    def __init__(self, place: str, scratch: Path) -> None:
        """Waits for the database. Raises TlsError."""
        self._place, self.scratch = place, _made(scratch)
        self._known: bytes | None = None
        self.look()

    def __str__(self) -> str:
        return "in the ledger's database"

    def look(self) -> None:
        """Reads what another replica may have written. Waits for the database; may run in a thread. Raises TlsError."""
        try:
            with closing(shared.Shared(self._place)) as there:
                found = there.read(_NAME)
        except errors.LedgerError as error:
            raise TlsError(f"the sync CA cannot be read: {error}") from error
        self._known = found.encode() if found is not None else None

    def read(self) -> bytes | None:
        return self._known

    def keep(self, data: bytes, was: bytes | None) -> bool:
        try:
            with closing(shared.Shared(self._place)) as there:
                found = there.replace(_NAME, was.decode() if was is not None else None, data.decode())
        except errors.LedgerError as error:
            raise TlsError(f"the sync CA cannot be kept: {error}") from error
        self._known = found.encode()
        return self._known == data


def write(path: Path, data: bytes) -> None:
    """A file that only this user reads, on the disk when this returns."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
        os.fsync(handle)
    finally:
        os.close(handle)


def _made(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise TlsError(f"the directory {path} for the sync CA cannot be made: {error}") from error
    return path


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
