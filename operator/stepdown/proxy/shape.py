"""What a request is, as far as its worst case goes: the canonical body in, five numbers out. `exchange` makes it, `fit` reads
it."""

from typing import NamedTuple


class RequestShape(NamedTuple):
    """All that the price of a request can depend on before it is sent."""

    input_tokens_bound: int
    """Bytes of the canonical body (an ASCII byte 1 token, any other 3) plus 256."""
    has_non_text: bool
    """A part that is not text: counts the model's whole context, since nobody but the upstream knows its tokens."""
    max_tokens: int | None
    """What the client asked for; None: it named no bound."""
    n: int
    """Answers asked for: `n`, `best_of` and the number of prompts multiplied."""
    stream: bool
