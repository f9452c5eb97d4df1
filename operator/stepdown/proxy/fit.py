"""The worst case of a request on a rung, and which rungs may serve it: pure arithmetic that the ceiling stands on. The till
calls it.

A request is priced once, before it is sent, at the dearest price in force until its longest possible end. What it can cost at
most is its input bound at the dearer of the two input prices, plus its output bound, plus what the upstream has been seen to
take beyond them. A rung without such a bound is None: never under a Hard budget. Whether the input fits the model's context is
not asked here: the upstream says so, and that costs nothing.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from stepdown.proxy.shape import RequestShape
from stepdown.proxy.table import RungEntry

DRAIN_S: Final = 60.0
"""How long a request may outlive its timeout, drained in the background for its usage."""


class Fit(NamedTuple):
    """A rung that could serve a request, at its worst case there."""

    rung: RungEntry
    amount_nusd: int
    max_tokens: int | None
    """To send; None: send no bound."""


def output_tokens(rung: RungEntry, shape: RequestShape, route_max_tokens: int | None) -> int | None:
    """The bound on output to send: the smallest of the request's, the route's and the catalog's. None: none of them has one."""
    tokens = shape.max_tokens
    if route_max_tokens is not None and (tokens is None or route_max_tokens < tokens):
        tokens = route_max_tokens
    cap = rung.max_output_tokens
    if cap is not None and (tokens is None or cap < tokens):
        tokens = cap
    return tokens


def worst_case_nusd(
    rung: RungEntry, shape: RequestShape, route_max_tokens: int | None, now_s: float, until_s: float
) -> tuple[int, int | None] | None:
    """What the request can cost on that rung at most, in nUSD, and the bound on output to send; None: nobody can say."""
    flat = rung.flat
    if flat is not None:
        input_pusd = rung.worst_input_pusd
        output_pusd = flat[2]
    else:
        prices = rung.prices_at(now_s, until_s)
        if prices is None:
            return None
        input_pusd = max(prices[0], prices[1])
        output_pusd = prices[2]
    input_tokens, has_non_text, tokens, n, _ = shape
    if route_max_tokens is not None and (tokens is None or route_max_tokens < tokens):
        tokens = route_max_tokens
    cap = rung.max_output_tokens
    if cap is not None and (tokens is None or cap < tokens):
        tokens = cap
    context = rung.context_tokens
    if has_non_text:
        if context is None:
            return None
        input_tokens = max(input_tokens, context)
    if rung.bound == "Context":
        if context is None:
            return None
        bound = context * n
    elif tokens is None:
        return None
    else:
        bound = (tokens + rung.reasoning_tokens) * n
    return -(-(input_tokens * input_pusd + bound * output_pusd) // 1000) + rung.overrun_nusd, tokens


def candidates(
    visible: Sequence[RungEntry],
    hidden: Sequence[RungEntry],
    shape: RequestShape,
    route_max_tokens: int | None,
    now_s: float,
    until_s: float,
) -> list[Fit]:
    """The rungs that may serve this very request, best first, each strictly cheaper than those before it.

    A rung that is not cheaper than a better one fits nowhere that the better one does not. Tiers go by output price, so a
    visible rung may be dearer here than one that a step hides: it is left out, unless nothing else is left; then the cheapest
    visible one stays. Empty: no visible rung can be bounded for this request.
    """
    fits: list[Fit] = []
    for rung in visible:
        worst = worst_case_nusd(rung, shape, route_max_tokens, now_s, until_s)
        if worst is not None:
            fits.append(Fit(rung, worst[0], worst[1]))
    hidden_nusd = [
        worst[0]
        for worst in (worst_case_nusd(rung, shape, route_max_tokens, now_s, until_s) for rung in hidden)
        if worst is not None
    ]
    if hidden_nusd and fits:
        ceiling = min(hidden_nusd)
        fits = [fit for fit in fits if fit.amount_nusd <= ceiling] or [min(fits, key=lambda fit: fit.amount_nusd)]
    cheaper: list[Fit] = []
    for fit in fits:
        if not cheaper or fit.amount_nusd < cheaper[-1].amount_nusd:
            cheaper.append(fit)
    return cheaper
