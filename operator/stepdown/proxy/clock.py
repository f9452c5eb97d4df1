"""The proxy's clocks, in one place: seconds since boot, and the ledger's time that sync carries.

CLOCK_BOOTTIME goes on while the machine sleeps and never steps, so a lease that should have died in a suspended laptop is
dead when it wakes. The ledger's time decides in which period a request is admitted; between two syncs it is the last one
heard plus the seconds since. The till, the syncer and the log read this; tests give a clock that they turn by hand.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_BOOT_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boottime_s() -> float:
    """Seconds since boot, suspended time included where the system knows it."""
    return time.clock_gettime(_BOOT_CLOCK)


def boot_id() -> str:
    """What tells one boot from another; empty where the system does not say: then no log is ever resumed."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Clock:
    """Seconds since boot, and the ledger's time as `boot_s() + offset_s`."""

    __slots__ = ("boot_s", "offset_s")

    def __init__(self, boot_s: Callable[[], float] = boottime_s, now_s: float | None = None) -> None:
        """`now_s`: the ledger's time until sync brings it; the machine's own when left out."""
        self.boot_s = boot_s
        wall_s = time.time() if now_s is None else now_s  # noqa: TID251 (the proxy's one reading of the machine's wall clock)
        self.offset_s = wall_s - boot_s()

    def now_s(self) -> float:
        """The ledger's time, Unix seconds."""
        return self.boot_s() + self.offset_s

    def heard(self, ledger_s: float) -> None:
        """An answer has just come in that carries the ledger's time: ours follows, late by its way here and never ahead."""
        self.offset_s = ledger_s - self.boot_s()
