"""The last lines of both proofs, in virtual time and in real: what all schedules come to together."""

from collections.abc import Sequence
from typing import Protocol


class Summed(Protocol):
    """What one schedule comes to, as far as both count it."""

    notes: dict[str, int]
    bill_nusd: int
    refusals: int
    judged: int
    for_want_of_a_keeper: int
    unreconciled_nusd: int


def verdict(tallies: Sequence[Summed], made: str) -> int:
    """`made`: how many of what they are about. The exit code."""
    notes: dict[str, int] = {}
    for tally in tallies:
        for what, count in tally.notes.items():
            notes[what] = notes.get(what, 0) + count
    print("; ".join(f"{what}: {count}" for what, count in sorted(notes.items())))
    print(
        f"{made}, {sum(t.bill_nusd for t in tallies)} nUSD billed, "
        f"{sum(t.refusals for t in tallies)} refusals for want of money ({sum(t.judged for t in tallies)} judged), "
        f"{sum(t.for_want_of_a_keeper for t in tallies)} for want of a keeper"
    )
    most = max((tally.unreconciled_nusd for tally in tallies), default=0)
    print(f"OK {len(tallies)} schedules: 0 over, 0 false refusals, 0 lost, max unreconciled {most} nUSD")
    return 0
