"""What a model saves against a baseline: for the quoted scenarios, and for the ledger's real traffic. `stepdown report savings`
calls this.

The quoted table prices *all* tokens, input and output alike, at one price, the model's output price: that is its assumption,
and `ASSUMPTION` says so wherever it is shown. GPT-4o, its baseline, has only an output price. For real traffic a baseline whose
input price is not known is never given one: the baseline's cost is then that of its output tokens alone, a lower bound of what
it would have cost, so that the saving shown is one too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from stepdown.model.money import PUSD_PER_NUSD

ASSUMPTION = "every token, input or output, at the model's output price; no other price of the baseline is known"
LOWER_BOUND = (
    "the baseline's input price is not known: its input tokens are counted as free, so this is the least that is saved"
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A month's traffic as people quote it."""

    name: str
    tokens: int


SCENARIOS = (
    Scenario("MVP", 5_000_000),
    Scenario("Beta", 50_000_000),
    Scenario("Launch", 500_000_000),
    Scenario("Growth", 5_000_000_000),
)
BASELINE_OUTPUT_PUSD = 10_000_000
"""GPT-4o: $10.00 per million output tokens; its input price is not known."""


@dataclass(frozen=True, slots=True)
class Saving:
    """One line of the table. `saved_percent` is exact; `percent_text` is what people read."""

    name: str
    tokens: int
    baseline_nusd: int
    cost_nusd: int

    @property
    def saved_nusd(self) -> int:
        return self.baseline_nusd - self.cost_nusd

    @property
    def saved_percent(self) -> Fraction | None:
        """None: the baseline costs nothing, so there is no share of it to save."""
        return Fraction(100 * self.saved_nusd, self.baseline_nusd) if self.baseline_nusd else None

    @property
    def percent_text(self) -> str:
        """`97.5`, rounded down towards the baseline; `–` where there is no share."""
        share = self.saved_percent
        if share is None:
            return "–"
        tenths, sign = abs(int(share * 10)), "-" if share < 0 else ""
        return f"{sign}{tenths // 10}.{tenths % 10}"


@dataclass(frozen=True, slots=True)
class Prices:
    """A baseline's prices in pUSD a token; None: not known, and none is made up."""

    name: str
    input_pusd: int | None
    cached_input_pusd: int | None
    output_pusd: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one model served on one route, from the ledger's counters."""

    route: str
    model: str
    requests: int
    successes: int
    input_tokens: int
    """Uncached; the three counts are disjoint."""
    cached_input_tokens: int
    output_tokens: int
    cost_nusd: int
    unpriced: int = 0
    """Requests whose cost is not known and is in `cost_nusd` as 0."""


@dataclass(frozen=True, slots=True)
class TrafficSaving:
    """One row of real traffic against the baseline."""

    traffic: Traffic
    saving: Saving
    lower_bound: bool
    """The baseline's cost leaves out tokens whose price is not known."""
    incomplete: bool
    """Some of the traffic has no known cost: nothing can be said of what it saved."""

    @property
    def nusd_per_success(self) -> int | None:
        """Cost per successful request, rounded up; None: none succeeded."""
        return -(-self.traffic.cost_nusd // self.traffic.successes) if self.traffic.successes else None


def scenario_savings(output_pusd: int, baseline_output_pusd: int = BASELINE_OUTPUT_PUSD) -> tuple[Saving, ...]:
    """The quoted table for a model of that output price."""
    return tuple(
        Saving(each.name, each.tokens, _nusd(each.tokens * baseline_output_pusd), _nusd(each.tokens * output_pusd))
        for each in SCENARIOS
    )


def traffic_savings(rows: Iterable[Traffic], baseline: Prices) -> tuple[TrafficSaving, ...]:
    """Each row of real traffic against what the baseline would have cost for the same tokens."""
    return tuple(_traffic_saving(row, baseline) for row in rows)


def total(savings: Iterable[TrafficSaving]) -> Saving:
    """The sum over all rows, in one line."""
    tokens = baseline_nusd = cost_nusd = 0
    for each in savings:
        tokens += each.saving.tokens
        baseline_nusd += each.saving.baseline_nusd
        cost_nusd += each.saving.cost_nusd
    return Saving("total", tokens, baseline_nusd, cost_nusd)


def _traffic_saving(row: Traffic, baseline: Prices) -> TrafficSaving:
    # A cached token is charged as an uncached one where the baseline states no price for it: it is input all the same.
    cached_pusd = baseline.cached_input_pusd if baseline.cached_input_pusd is not None else baseline.input_pusd
    baseline_pusd = (
        row.output_tokens * baseline.output_pusd
        + row.input_tokens * (baseline.input_pusd or 0)
        + row.cached_input_tokens * (cached_pusd or 0)
    )
    tokens = row.input_tokens + row.cached_input_tokens + row.output_tokens
    return TrafficSaving(
        traffic=row,
        saving=Saving(f"{row.route} {row.model}", tokens, _nusd(baseline_pusd), row.cost_nusd),
        lower_bound=baseline.input_pusd is None and row.input_tokens + row.cached_input_tokens > 0,
        incomplete=row.unpriced > 0,
    )


def _nusd(amount_pusd: int) -> int:
    return -(-amount_pusd // PUSD_PER_NUSD)
