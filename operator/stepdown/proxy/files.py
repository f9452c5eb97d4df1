"""A small file that somebody else changes: a mounted Secret, token or CA bundle. `keys` and `syncline` read theirs by this."""

from pathlib import Path


class WatchedFile:
    """A file's bytes, read again only when it has changed. A look costs one `stat`."""

    __slots__ = ("_data", "_stamp", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data: bytes | None = None
        self._stamp: tuple[int, int, int] | None = None

    def read(self) -> bytes | None:
        """None: it is not there, and nothing is remembered of it. The same object while the file stays the same."""
        try:
            found = self.path.stat()  # follows the symlinks that the kubelet swaps
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            if stamp != self._stamp:
                self._data, self._stamp = self.path.read_bytes(), stamp
        except OSError:
            self._data = self._stamp = None
        return self._data
