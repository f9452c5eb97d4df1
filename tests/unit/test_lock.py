"""The image holds what was tested, and all that it needs. If these fail, an image runs versions that no test has seen, or does
not start.

No network: the closure is read from what is installed, as the locks were compiled from what the index says.
"""

import importlib.metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from release import lock

RUNTIME = {pin.name: pin for pin in lock.pins(lock.RUNTIME)}
DEVELOPMENT = {pin.name: pin for pin in lock.pins(lock.DEVELOPMENT)}


def closure(name: str, extra: str = "") -> set[str]:
    """All that a distribution needs here, by the metadata of what is installed."""
    found: set[str] = set()
    waiting = [(name, extra)]
    seen = set()
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        for text in importlib.metadata.requires(at[0]) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": at[1]}):
                key = canonicalize_name(needed.name)
                found.add(key)
                waiting += [(key, each) for each in ("", *needed.extras)]
    return found


def test_every_pin_was_read() -> None:
    """A lock in a form that is not understood would pass every test below."""
    for path, pins in ((lock.RUNTIME, RUNTIME), (lock.DEVELOPMENT, DEVELOPMENT)):
        text = path.read_text(encoding="utf-8")
        assert len(pins) == sum("==" in line for line in text.splitlines() if not line.startswith((" ", "#")))
        assert sum(len(pin.hashes) for pin in pins.values()) == text.count("--hash=")
        assert all(pin.hashes for pin in pins.values())


def test_the_image_has_the_versions_that_were_tested() -> None:
    """Compiled on another day, the two locks would part. `make lock` writes both."""
    assert lock.disagreements() == []


def test_the_image_has_all_that_the_package_needs_and_nothing_else() -> None:
    """A dependency that was added without `make lock` is missing in the image; one that was removed stays in it."""
    assert closure("stepdown") == {name for name, pin in RUNTIME.items() if _wanted(pin)}


def test_no_lock_names_a_host() -> None:
    """A lock that names an index works only where that index is."""
    for path in (lock.RUNTIME, lock.DEVELOPMENT):
        assert "://" not in path.read_text(encoding="utf-8")


def _wanted(pin: lock.Pin) -> bool:
    return not pin.marker or Requirement(f"x; {pin.marker}").marker.evaluate()  # type: ignore[union-attr]
