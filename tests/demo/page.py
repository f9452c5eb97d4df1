"""How the demos print: titles, facts, rows. Both stages and the story call this."""

import sys
from dataclasses import dataclass

WIDTH = 96
BOLD, RED, PLAIN = ("\033[1m", "\033[31m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got."""

    model: str
    tier: str
    reason: str
    note: str
    """What it cost; or, of a stream, whose head is sent before that is known, in how many chunks it came."""


def title(text: str) -> None:
    print(f"\n{BOLD}{text}{PLAIN}\n", flush=True)


def fact(name: str, text: str) -> None:
    print(f"  {name:<10}{text}", flush=True)


def header() -> None:
    print(f"  {BOLD}{'CALLED':<20}{'ANSWERED BY':<22}{'TIER':<13}{'REASON':<13}COST{PLAIN}")


def row(called: str, answer: Answer) -> None:
    print(f"  {called:<20}{answer.model:<22}{answer.tier:<13}{answer.reason:<13}{answer.note}", flush=True)
