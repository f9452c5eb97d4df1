"""What `/metrics` shows of the operator, in Prometheus' format. `http` serves it; the parts of the process count here.

Money is read from the ledger at each scrape, so it is live where statuses are coarse. A budget is a label, a route is not:
there may be ten thousand of them, and the proxies have their own metrics.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stepdown.budget.account import Balance
from stepdown.cluster.wire import Answered
from stepdown.model.config import account_id
from stepdown.plan.world import ProxiesSeen
from stepdown.reconcile import Pass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NUSD = 1_000_000_000
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One process's."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._money = _Money()
        self._registry.register(self._money)
        registry = self._registry
        self.leader = Gauge("stepdown_leader", "1 while this process leads.", registry=registry)
        self.listed = Gauge("stepdown_objects", "Objects as last seen.", ["kind"], registry=registry)
        self.reconcile = Histogram(
            "stepdown_reconcile_seconds",
            "One pass over everything, from reading the balances to publishing the config.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.reconcile_failures = Counter(
            "stepdown_reconcile_failures", "Passes that the ledger did not let through.", registry=registry
        )
        self.waiting = Gauge("stepdown_reconcile_pending", "1 while a change waits for its pass.", registry=registry)
        self.writes = Counter("stepdown_api_writes", "Writes that the API server took.", ["what"], registry=registry)
        self.write_failures = Counter(
            "stepdown_api_write_failures", "Writes that the API server did not take.", ["what"], registry=registry
        )
        self.requests = Counter(
            "stepdown_api_requests", "Requests to the API server, watches not counted.", ["verb", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "stepdown_api_request_seconds",
            "From a request to the API server to its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.standstill = Gauge(
            "stepdown_ledger_standstill", "1 while less is granted than the limits allow; the log says why.", registry=registry
        )
        for what in ("child", "status"):
            self.writes.labels(what)
            self.write_failures.labels(what)

    def answered(self, request: Answered) -> None:
        self.requests.labels(request.method, str(request.status)).inc()
        self.request_seconds.observe(request.seconds)

    def text(self, shown: "Shown") -> bytes:
        """Takes milliseconds with a hundred budgets: call it in a thread."""
        self._money.shown = shown
        return generate_latest(self._registry)


@dataclass(frozen=True, slots=True)
class Shown:
    """What is read at a scrape."""

    made: Pass | None = None
    balances: Mapping[str, Balance] = field(default_factory=dict)
    """The ledger's now."""
    proxies: Mapping[str, ProxiesSeen] = field(default_factory=dict)
    syncs: Mapping[int, int] = field(default_factory=dict)
    """Messages of proxies, by the status of the answer."""


class _Money(Collector):
    """Budgets, routes and fleets, made anew at each scrape: what is gone must not go on being shown."""

    def __init__(self) -> None:
        self.shown = Shown()

    def collect(self) -> Iterator[Metric]:
        syncs = CounterMetricFamily("stepdown_sync_messages", "Messages of proxies, by answer.", labels=["code"])
        for code, count in sorted(self.shown.syncs.items()):
            syncs.add_metric([str(code)], count)
        yield syncs
        made = self.shown.made
        if made is not None:
            yield from self._budgets(made)
            yield from self._routes(made)
            yield from self._fleets(made)

    def _budgets(self, made: Pass) -> Iterator[GaugeMetricFamily]:
        def family(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"stepdown_budget_{name}", text, labels=["namespace", "budget"])

        limit = family("limit_usd", "Ceiling of the period, override included.")
        spent = family("spent_usd", "Settled and estimated in the period.")
        reserved = family("reserved_usd", "Worst cases of requests in flight.")
        unreconciled = family("unreconciled_usd", "Held by proxies that are lost.")
        excess = family("excess_usd", "Beyond all that was reserved: an upstream exceeded max_tokens.")
        used = family("used_ratio", "Spent and unreconciled, as a part of the ceiling.")
        step = family("step_percent", "The step in force; 0: none was reached.")
        forecast = family("forecast_usd", "What the period ends at if spending goes on as it did, as the status says.")
        enforced = family("enforced", "1 when the bill cannot pass the ceiling.")
        for budget in made.plan.budgets.values():
            if budget.period is None or budget.verdict is None:
                continue
            labels = [budget.source.namespace, budget.source.name]
            balance = self.shown.balances.get(account_id(budget.key, budget.period.start_s))
            limit.add_metric(labels, budget.limit_nusd / _NUSD)
            spent_nusd = balance.spent_nusd if balance is not None else 0
            held_nusd = balance.unreconciled_nusd if balance is not None else 0
            spent.add_metric(labels, spent_nusd / _NUSD)
            reserved.add_metric(labels, (balance.reserved_nusd if balance is not None else 0) / _NUSD)
            unreconciled.add_metric(labels, held_nusd / _NUSD)
            excess.add_metric(labels, (balance.excess_nusd if balance is not None else 0) / _NUSD)
            used.add_metric(labels, (spent_nusd + held_nusd) / budget.limit_nusd)
            step.add_metric(labels, budget.verdict.step.at_percent if budget.verdict.step is not None else 0)
            expected = made.statuses[("SpendBudget", budget.key)].get("forecast")
            if expected is not None:
                forecast.add_metric(labels, float(expected["monthEndUSD"]))
            enforced.add_metric(labels, float(balance is not None and balance.enforced))
        yield from (limit, spent, reserved, unreconciled, excess, used, step, forecast, enforced)

    def _routes(self, made: Pass) -> Iterator[GaugeMetricFamily]:
        routes = made.plan.routes.values()
        counts = {
            "served": sum(bool(route.classes) and not route.refuse for route in routes),
            "stepped_down": sum(
                default is not None and default.in_force > 0 for default in (route.classes.get("default") for route in routes)
            ),
            "refused": sum(bool(route.refuse) for route in routes),
        }
        family = GaugeMetricFamily("stepdown_routes", "ModelRoutes by what becomes of their requests.", labels=["state"])
        for state, count in counts.items():
            family.add_metric([state], count)
        yield family

    def _fleets(self, made: Pass) -> Iterator[GaugeMetricFamily]:
        pods = GaugeMetricFamily("stepdown_proxies", "Proxies that sync.", labels=["namespace", "proxy"])
        ready = GaugeMetricFamily(
            "stepdown_proxies_ready", "Those of them that say that they are.", labels=["namespace", "proxy"]
        )
        for key, fleet in made.plan.fleets.items():
            seen = self.shown.proxies.get(key)
            labels = [fleet.source.namespace, fleet.source.name]
            pods.add_metric(labels, seen.pods if seen is not None else 0)
            ready.add_metric(labels, seen.ready if seen is not None else 0)
        yield from (pods, ready)
