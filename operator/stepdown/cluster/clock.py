"""Seconds that only grow, for expiries. Unlike the asyncio loop's time they go on while the machine is suspended, so that a
lease which died meanwhile is dead on waking.
"""

import time

_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed_s() -> float:
    return time.clock_gettime(_BOOT_CLOCK)
