"""The one place where `local` and `cli` read the machine's clock; everything below them takes `now` as a parameter."""

import time


def now_s() -> float:
    """Unix seconds."""
    return time.time()  # noqa: TID251 (the shells' one reading of the clock)


def now_ns() -> int:
    """Unix nanoseconds, as files' times are."""
    return time.time_ns()
