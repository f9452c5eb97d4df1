"""Where what was built once is kept, outside the tree: `${XDG_CACHE_HOME:-~/.cache}/stepdown/devcluster`.

Nothing is ever half there: a thing is made in a folder beside its place and renamed. One process makes at a time, others wait.
"""

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(base).expanduser() / "stepdown" / "devcluster"
    path.mkdir(parents=True, exist_ok=True)
    return path


def folder(name: str) -> Path:
    path = root() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Held by one process at a time; the kernel lets go of it when that process ends, however it ends."""
    with (folder("locks") / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def staged(place: Path) -> Iterator[Path]:
    """A new folder that becomes `place` when the block is through, and is removed if it fails. Call it under a lock."""
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f".{place.name}.*"):  # a killed build's; we hold the lock, so nobody writes there
        shutil.rmtree(left, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        yield stage
        stage.chmod(0o755)
        stage.rename(place)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def say(text: str) -> None:
    """Progress, for a person who waits minutes; stdout belongs to answers that a program reads."""
    print(f"devcluster: {text}", file=sys.stderr, flush=True)
