"""The upstream's own bill, in arithmetic of its own: what the product's ledger is compared with.

Nothing here may import stepdown. The product counts in integers of pico-USD; this counts in `decimal.Decimal` USD with every
inexact operation forbidden, from its own price list: a mistake in one of the two shows as a difference. Used by `simulator.py`.
"""

import csv
import io
from collections import Counter, deque
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

PRICE_LIST = Path(__file__).with_name("prices.csv")

Outcome = Literal["in_flight", "complete", "refused", "interrupted"]
"""How a request ended: answered whole; answered with 4xx or 5xx (never billed); cut, hung, or its client gone."""

_EXACT = Context(prec=60, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow])
_UP = Context(prec=60, rounding=ROUND_CEILING, traps=[InvalidOperation, DivisionByZero, Overflow])
_NUSD_PER_TOKEN_AT_1_USD_PER_MTOK = Decimal(1000)


class Price(NamedTuple):
    """USD per million tokens."""

    input_usd: Decimal
    cached_input_usd: Decimal
    output_usd: Decimal


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What a request used. `cached` is part of `prompt`, `reasoning` is part of `completion`, as in OpenAI's usage."""

    prompt: int
    cached: int = 0
    completion: int = 0
    reasoning: int = 0


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One billed request."""

    request: int
    model: str
    key: str
    tokens: Tokens
    cost_nusd: int
    outcome: Outcome


def read_price_list(path: Path = PRICE_LIST) -> dict[str, Price | None]:
    """Every id of the list in lower case; None where no price is known."""
    prices: dict[str, Price | None] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            price = price_of(row["input_usd_per_mtok"], row["output_usd_per_mtok"], row["cached_input_usd_per_mtok"])
            prices.update((name.lower(), price) for name in row["ids"].split(";"))
    return prices


def price_of(input_usd: str, output_usd: str, cached_input_usd: str = "") -> Price | None:
    """A price from decimals as written; cached input without a price costs as much as other input. None: no price known."""
    if not input_usd or not output_usd:
        return None
    return Price(Decimal(input_usd), Decimal(cached_input_usd or input_usd), Decimal(output_usd))


def cost_nusd(price: Price, tokens: Tokens) -> int:
    """Exact, then rounded up once to nano-USD."""
    mul, add = _EXACT.multiply, _EXACT.add
    usd_per_mtok_tokens = add(
        add(mul(price.input_usd, Decimal(tokens.prompt - tokens.cached)), mul(price.cached_input_usd, Decimal(tokens.cached))),
        mul(price.output_usd, Decimal(tokens.completion)),
    )
    return int(_UP.to_integral_value(mul(usd_per_mtok_tokens, _NUSD_PER_TOKEN_AT_1_USD_PER_MTOK)))


class Bill:
    """Sums of what was billed, and the newest `keep` lines (None: all)."""

    def __init__(self, prices: Mapping[str, Price | None], keep: int | None) -> None:
        self._prices = prices
        self.total_nusd = 0
        self.by_model: Counter[str] = Counter()
        self.by_key: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.unpriced = 0
        self.lines: deque[Line] = deque(maxlen=keep)

    def charge(self, request: int, model: str, key: str, tokens: Tokens, outcome: Outcome) -> int:
        """Adds one request and returns its cost in nUSD."""
        price = self._prices[model.lower()]
        cost = cost_nusd(price, tokens) if price else 0
        self.unpriced += price is None
        self.total_nusd += cost
        self.by_model[model] += cost
        self.by_key[key] += cost
        self.lines.append(Line(request=request, model=model, key=key, tokens=tokens, cost_nusd=cost, outcome=outcome))
        return cost

    def invoice(self) -> str:
        """What the upstream would send for it: a CSV by model, exact to the nano-dollar, with the sum as its last line."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["model", "amount", "currency"])
        for model, cost in [*sorted(self.by_model.items()), ("TOTAL", self.total_nusd)]:
            lines.writerow([model, f"{Decimal(cost).scaleb(-9):.9f}", "USD"])
        return text.getvalue()

    def as_json(self) -> dict[str, object]:
        """For `GET /_bill`."""
        return {
            "total_nusd": self.total_nusd,
            "by_model": dict(self.by_model),
            "by_key": dict(self.by_key),
            "outcomes": dict(self.outcomes),
            "unpriced": self.unpriced,
        }
