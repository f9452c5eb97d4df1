"""The one place where the shells (`local`, `watch`, `cli`) read the machine's clock; below them `now` is a parameter."""

import time


def now_s() -> float:
    """Unix seconds."""
    return time.time()  # noqa: TID251 (the shells' one reading of the clock)


def now_ns() -> int:
    """Unix nanoseconds, as files' times are."""
    return time.time_ns()
