"""Tells that something below the folders has changed. `run` loads the folder again, whatever it was: what is there now counts,
not what happened (level-triggered), so a lost notification costs at most one resync.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from stepdown.local.documents import SUFFIXES

COALESCE_MS = 50
"""Quiet for so long before the folder is read: an editor writes a file in several steps, `git checkout` many files."""
AT_MOST_MS = 400
"""But not longer than this, in a folder that never comes to rest."""


class Watcher:
    """A thread that calls `changed()` after every burst of changes, until `stop()`."""

    def __init__(self, roots: Sequence[str], changed: Callable[[], None], failed: Callable[[str], None]) -> None:
        # A file is watched through its folder: editors replace files, and a watch on the old one would see nothing more.
        folders = {(Path(root) if Path(root).is_dir() else Path(root).parent).resolve() for root in roots}
        self._folders = sorted(str(folder) for folder in folders)
        self._recursive = any(Path(root).is_dir() for root in roots)
        self._changed = changed
        self._failed = failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        """Notices by the kernel; where it refuses them (too many watches), by looking twice a second."""
        poll = False
        while not self._stop.is_set():
            try:
                self._watch(poll)
            except OSError as error:  # a root that is being replaced raises this too, and is back a moment later
                if all(Path(folder).is_dir() for folder in self._folders) and not poll:
                    self._failed(f"the system gives no notice of changed files ({error}); they are looked at twice a second")
                    poll = True
                self._stop.wait(0.5)

    def _watch(self, poll: bool) -> None:
        """Until the end, or until a root has been replaced by another of its name, which a watch does not follow."""
        from watchfiles import watch

        roots = [Path(folder).stat().st_ino for folder in self._folders]
        changes = watch(
            *self._folders,
            watch_filter=lambda change, path: self._matters(path),
            debounce=AT_MOST_MS,
            step=COALESCE_MS,
            rust_timeout=500,
            yield_on_timeout=True,
            stop_event=self._stop,
            recursive=self._recursive,
            force_polling=poll,
            poll_delay_ms=500,
            raise_interrupt=False,
        )
        for change in changes:
            if change:
                self._changed()
            if [Path(folder).stat().st_ino for folder in self._folders] != roots:
                self._changed()
                return

    def _matters(self, path: str) -> bool:
        """Files that are read, and folders (by a name without a dot); not a ledger or a log that lies in the folder."""
        inside = next((path[len(folder) + 1 :] for folder in self._folders if path.startswith(folder + "/")), path)
        *above, name = inside.split("/")
        if name == "..data":  # how a mounted ConfigMap changes: one link is turned
            return True
        if any("." in part and (part.startswith(".") or part.endswith(".wal")) for part in above):
            return False
        return name.lower().endswith(SUFFIXES) or "." not in name
