"""Nearest names, so that a typo's message says what was meant. Every message about an unknown name calls this."""

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """The most similar names, best first, compared without regard to case; none when nothing is similar."""
    from rapidfuzz import fuzz, process  # 50 ms that only a mistake should pay for

    choices = sorted(set(known))
    found = process.extract(word, choices, scorer=fuzz.WRatio, processor=str.casefold, limit=limit, score_cutoff=72)
    return tuple(name for name, _, _ in found)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'Qwen/Qwen3-32B'?)"`, or nothing."""
    found = nearest(word, known, limit=1)
    return f" (did you mean '{found[0]}'?)" if found else ""
