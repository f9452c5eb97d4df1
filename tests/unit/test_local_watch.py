"""Noticing changes. If these fail, an edited budget is not in force until the next resync."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepdown.local.watch import Watcher

WAIT_S = 30.0
"""Only a test that fails waits for so long."""


@contextmanager
def watching(root: Path) -> Iterator[threading.Event]:
    seen = threading.Event()
    watcher = Watcher([str(root)], seen.set, lambda message: None)
    watcher.start()
    try:
        # The watch begins at some moment after start: change files until one is seen.
        for number in range(300):
            (root if root.is_dir() else root.parent).joinpath(f"probe{number}.yaml").touch()
            if seen.wait(0.1):
                break
        else:
            raise AssertionError("no change was ever seen")
        while seen.wait(0.7):  # until the probes' echoes have ended
            seen.clear()
        yield seen
    finally:
        watcher.stop()


def test_changed_new_and_removed_files_are_seen(tmp_path: Path) -> None:
    """Each of them changes what is in force."""
    (tmp_path / "team").mkdir()
    with watching(tmp_path) as seen:
        for change in (
            lambda: (tmp_path / "team" / "a.yaml").write_text("a: 1"),
            lambda: (tmp_path / "team" / "a.yaml").rename(tmp_path / "b.json"),
            lambda: (tmp_path / "b.json").unlink(),
        ):
            seen.clear()
            change()
            assert seen.wait(WAIT_S)


def test_a_ledger_in_the_folder_does_not_wake_it(tmp_path: Path) -> None:
    """`-f .` with the ledger beside the routes: every request would read the folder again."""
    watcher = Watcher([str(tmp_path)], lambda: None, lambda message: None)
    root = str(tmp_path.resolve())
    for path in ("stepdown.db", "stepdown.db-wal", "stepdown.db.wal/0001", "stepdown.db.wal/lock", ".git/index"):
        assert not watcher._matters(f"{root}/{path}")
    for path in ("a.yaml", "team/a.JSON", "team", "..data", "x/..data"):
        assert watcher._matters(f"{root}/{path}")


def test_a_folder_that_is_replaced_is_followed(tmp_path: Path) -> None:
    """A deployment that renames a new folder into place would otherwise be the last one that is ever seen."""
    root = tmp_path / "routes"
    root.mkdir()
    with watching(root) as seen:
        seen.clear()
        root.rename(tmp_path / "old")
        root.mkdir()
        assert seen.wait(WAIT_S)
        for number in range(300):
            seen.clear()
            (root / f"new{number}.yaml").touch()
            if seen.wait(0.1):
                return
        raise AssertionError("the new folder is not watched")
