"""The models of a schedule and what they cost: for the ModelCatalog, for the upstream's bill, and for the judge."""

import time
from decimal import Decimal
from typing import Any, NamedTuple

from tests.upstream.bill import Price, Tokens, cost_nusd, price_of

PROVIDER = "Proof"
"""The routes allow no other, so that no model of the built-in catalog takes a part."""


class Offer(NamedTuple):
    name: str
    tier: str
    input_usd: int
    output_usd: int
    """Per million tokens."""


BIG = Offer("proof-big", "Flagship", 10, 40)
MID = Offer("proof-mid", "Premium", 4, 10)
SMALL = Offer("proof-small", "MidRange", 1, 2)
OFFERS = (BIG, MID, SMALL)
_BESIDES = 600
"""Bytes and tokens that a proxy may add to a body, and its bound on input to the bytes."""


def price(offer: Offer, times: int = 1) -> Price:
    found = price_of(str(offer.input_usd * times), str(offer.output_usd * times))
    assert found is not None
    return found


def cost_of(model: str, times: int, tokens: Tokens) -> int:
    offer = next(each for each in OFFERS if each.name == model)
    return cost_nusd(price(offer, times), tokens)


def worst_nusd(offer: Offer, body_bytes: int, max_tokens: int, times: int = 1) -> int:
    """More than a request can cost: a token for each byte and some besides, and all the output that it may have."""
    return ((body_bytes + _BESIDES) * offer.input_usd + max_tokens * offer.output_usd) * times * 1000


def catalog(dearer_from_s: float | None, times: int) -> dict[str, Any]:
    """The spec of a ModelCatalog; from a moment on, if one is named, everything costs so many times as much."""
    models = []
    for each in OFFERS:
        entry: dict[str, Any] = {
            "name": each.name,
            "provider": PROVIDER,
            "tier": each.tier,
            "contextTokens": 10_000_000,
            "inputUSDPerMTok": str(each.input_usd),
            "outputUSDPerMTok": str(each.output_usd),
        }
        if dearer_from_s is not None:
            begin = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(dearer_from_s))
            dear = {"from": begin, "inputUSDPerMTok": str(each.input_usd * times)}
            entry["prices"] = [{**dear, "outputUSDPerMTok": str(each.output_usd * times)}]
        models.append(entry)
    return {"models": models}


def usd(nusd: int) -> str:
    """As a SpendBudget writes it."""
    return f"{Decimal(nusd).scaleb(-9):.9f}"
