"""What a proxy shows at `/metrics`, in Prometheus's text format: a renderer of its own, since the hot path pays for nothing
else.

Everything is read at the scrape from what the till and the syncer keep anyway; only latencies are observed as they happen
(`Histogram.observe`, called by `exchange`). The server hands in families of its own (breaker, connections).
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from stepdown.model.money import nusd_to_usd
from stepdown.proxy.syncer import Syncer
from stepdown.proxy.till import Till

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Sample(NamedTuple):
    labels: tuple[tuple[str, str], ...]
    value: str
    suffix: str = ""


class Family(NamedTuple):
    """One metric with its samples."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Sequence[Sample]


class Histogram:
    """Counts of observations by upper bound. `observe` is a search in a small tuple and two additions."""

    __slots__ = ("_bounds", "_counts", "_help", "_name", "_sum")

    def __init__(self, name: str, help_: str, bounds: Sequence[float] = LATENCY_BUCKETS_S) -> None:
        self._name = name
        self._help = help_
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self) -> Family:
        samples: list[Sample] = []
        total = 0
        for bound, count in zip((*map(repr, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            samples.append(Sample((("le", bound),), str(total), "_bucket"))
        samples.append(Sample((), repr(self._sum), "_sum"))
        samples.append(Sample((), str(total), "_count"))
        return Family(self._name, "histogram", self._help, samples)


def render(till: Till, syncer: Syncer | None, extra: Iterable[Family] = ()) -> str:
    """The whole page."""
    families = (*_traffic(till), *_money(till), *_health(till, syncer), *extra)
    return "\n".join(line for family in families for line in lines(family)) + "\n"


def lines(family: Family) -> Iterator[str]:
    """One family in the text format."""
    yield f"# HELP {family.name} {_escaped_help(family.help)}"
    yield f"# TYPE {family.name} {family.kind}"
    for each in family.samples:
        yield f"{family.name}{each.suffix}{_labels(each.labels)} {each.value}"


def one(name: str, kind: Literal["counter", "gauge"], help_: str, value: float | str) -> Family:
    """A family of a single sample without labels."""
    return Family(name, kind, help_, (Sample((), str(value)),))


def _traffic(till: Till) -> Iterator[Family]:
    totals = till.books.counters.totals()
    named = [(count, (("route", count.route), ("model", count.model), ("class", count.request_class))) for count in totals]

    def by_route(name: str, help_: str, field: str, *, money: bool = False) -> Family:
        values = ((labels, getattr(count, field)) for count, labels in named)
        samples = [Sample(labels, nusd_to_usd(value) if money else str(value)) for labels, value in values]
        return Family(name, "counter", help_, samples)

    yield by_route("stepdown_requests_total", "Attempts that were sent upstream and have ended.", "requests")
    yield by_route("stepdown_successes_total", "Attempts that ended with a complete 2xx answer.", "successes")
    tokens = [
        Sample((*labels, ("kind", kind)), str(getattr(count, field)))
        for count, labels in named
        for kind, field in (
            ("input", "input_tokens"),
            ("cached_input", "cached_input_tokens"),
            ("output", "output_tokens"),
        )
    ]
    yield Family("stepdown_tokens_total", "counter", "Tokens; the kinds are disjoint, reasoning is part of output.", tokens)
    yield by_route("stepdown_cost_usd_total", "Cost of ended attempts, estimates included.", "cost_nusd", money=True)
    estimated = "The part of the cost charged at the reservation, without usage."
    yield by_route("stepdown_estimated_usd_total", estimated, "estimated_nusd", money=True)
    unpriced = "Attempts on a model without a price: their cost is not known."
    yield by_route("stepdown_unpriced_requests_total", unpriced, "unpriced")


def _money(till: Till) -> Iterator[Family]:
    refusals = [Sample((("code", code),), str(count)) for code, count in sorted(till.refusals.items())]
    yield Family("stepdown_refusals_total", "counter", "Requests that no rung could serve, by reason.", refusals)
    yield one(
        "stepdown_excess_usd_total",
        "counter",
        "Cost beyond the reservation: the upstream took more tokens than it was allowed.",
        nusd_to_usd(till.excess_nusd),
    )
    yield one("stepdown_requests_in_flight", "gauge", "Attempts that hold a reservation.", len(till.books.open))
    yield one("stepdown_requests_waiting", "gauge", "Requests that wait for money.", len(till.queue))
    leases = sorted(till.books.leases.values(), key=lambda lease: lease.account)
    for field, help_ in (
        ("granted", "Cumulative grants to this proxy."),
        ("returned", "What it has given back of them, cumulative."),
        ("consumed", "Cost charged to this lease, cumulative."),
        ("reserved", "Worst cases of the requests in flight."),
        ("free", "What may still be reserved; below zero after an upstream's excess."),
    ):
        samples = [
            Sample((("budget", lease.budget), ("account", lease.account)), nusd_to_usd(getattr(lease, field)))
            for lease in leases
        ]
        yield Family(f"stepdown_lease_{field}_usd", "gauge", help_, samples)


def _health(till: Till, syncer: Syncer | None) -> Iterator[Family]:
    log = till.log
    yield one("stepdown_log_errors_total", "counter", "Log segments that could not be made (full disk).", log.errors)
    yield one("stepdown_log_segments_total", "counter", "Log segments made.", log.segment)
    if syncer is None:
        return
    boot_s = till.clock.boot_s()
    age_s = "+Inf" if syncer.last_acknowledged_s is None else f"{boot_s - syncer.last_acknowledged_s:.3f}"
    yield one("stepdown_sync_age_seconds", "gauge", "Since the sending of the last acknowledged sync.", age_s)
    yield one("stepdown_lease_life_seconds", "gauge", "Until the leases die.", f"{max(0.0, till.deadline_s - boot_s):.3f}")
    yield one("stepdown_syncs_total", "counter", "Syncs that were acknowledged.", syncer.completed)
    yield one("stepdown_sync_failures_total", "counter", "Syncs without an answer.", syncer.failures)
    yield one("stepdown_fenced_total", "counter", "Times that the ledger has closed this instance.", syncer.fenced)
    yield one("stepdown_config_errors_total", "counter", "Configs that could not be used.", syncer.config_errors)


def _labels(labels: Sequence[tuple[str, str]]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escaped_help(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
