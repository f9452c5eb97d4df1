"""Why a request could not be served by any rung, in words and numbers. The till raises it, `errors` puts it into OpenAI's
shape."""

import time
from typing import Literal

from stepdown.model.money import nusd_to_usd
from stepdown.proxy.lease import Lease

Code = Literal["budget_exhausted", "unbounded_request", "log_unavailable", "ledger_unreachable", "route_gone"]
"""* `budget_exhausted`: no rung's worst case fits what a budget has left (429);
* `unbounded_request`: under a Hard budget, and no rung's cost can be bounded for this request (400);
* `log_unavailable`: the proxy's disk is full, so nothing can be promised (503);
* `ledger_unreachable`: the lease has run out or is too small, and the ledger does not answer (503);
* `route_gone`: the route was deleted while the request waited or was between two attempts (404).
"""


class Refused(Exception):
    """No rung can serve the request."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        budget: str = "",
        limit_nusd: int | None = None,
        spent_nusd: int | None = None,
        remaining_nusd: int | None = None,
        needed_nusd: int | None = None,
        resets_at_s: int | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.budget = budget
        """`namespace/name` of the SpendBudget that refused; empty where none did."""
        self.limit_nusd = limit_nusd
        self.spent_nusd = spent_nusd
        self.remaining_nusd = remaining_nusd
        """Neither spent nor held by requests in flight."""
        self.needed_nusd = needed_nusd
        """The cheapest rung's worst case."""
        self.resets_at_s = resets_at_s
        self.retry_after_s = retry_after_s
        """Whole seconds for the Retry-After header; None: the same request is refused for ever."""


def exhausted(route: str, model: str, needed_nusd: int, lease: Lease, now_s: float, *, recoverable: bool) -> Refused:
    """No rung fits; `lease` is the one with the least left. `recoverable`: what is in flight may yet make room."""
    remaining_nusd = max(0, lease.free + lease.headroom_nusd)
    held_nusd = max(0, lease.limit_nusd - lease.spent_nusd - remaining_nusd)
    reset_s = max(1, int(lease.end_s - now_s) + 1)
    message = (
        f"SpendBudget {lease.budget}: {_usd(lease.spent_nusd)} of {_usd(lease.limit_nusd)} spent, {_usd(held_nusd)} held for"
        f" requests in flight, {_usd(remaining_nusd)} left; route {route} needs up to {_usd(needed_nusd)} for this request"
        f" with its cheapest model {model}. Ask for fewer tokens, or wait: it resets at {_utc(lease.end_s)}"
    )
    return Refused(
        "budget_exhausted",
        message,
        budget=lease.budget,
        limit_nusd=lease.limit_nusd,
        spent_nusd=lease.spent_nusd,
        remaining_nusd=remaining_nusd,
        needed_nusd=needed_nusd,
        resets_at_s=lease.end_s,
        retry_after_s=1 if recoverable else reset_s,
    )


def unreachable(route: str, needed_nusd: int, lease: Lease) -> Refused:
    """The ledger's keeper has not answered during the whole wait."""
    return Refused(
        "ledger_unreachable",
        f"route {route} needs up to {_usd(needed_nusd)} of SpendBudget {lease.budget} for this request, which this proxy does"
        f" not hold, and the ledger did not answer. Try again; if it goes on, look at the operator's pod",
        budget=lease.budget,
        needed_nusd=needed_nusd,
        retry_after_s=1,
    )


def no_account(route: str, budget: str) -> Refused:
    """The config has no account of a Hard budget for the present moment: it is out of date."""
    return Refused(
        "ledger_unreachable",
        f"route {route}: this proxy's config has no account of SpendBudget {budget} for the present period, so nothing can be"
        f" reserved in it. Try again; if it goes on, look at the operator's pod: its config has not arrived",
        budget=budget,
        retry_after_s=1,
    )


def unbounded(route: str, models: str) -> Refused:
    """Under a Hard budget, and nobody can say what the request costs at most."""
    return Refused(
        "unbounded_request",
        f"route {route} is under a Hard budget, and the cost of this request has no upper bound on {models}: state max_tokens"
        f" in the request or spec.parameters.maxTokens in the route, and send no input but text to a model whose context is"
        f" unknown; a model without a price in the catalog cannot be used at all",
    )


def log_unavailable(route: str, why: object) -> Refused:
    """The reservation could not be written down."""
    return Refused(
        "log_unavailable",
        f"route {route}: the proxy cannot write its log, so it can reserve nothing: {why}. Free some space on that volume",
        retry_after_s=1,
    )


def route_gone(route: str) -> Refused:
    """The route was there when the request came."""
    return Refused("route_gone", f"route {route} was deleted while the request waited", retry_after_s=1)


def _usd(nusd: int) -> str:
    return f"{nusd_to_usd(nusd)} USD"


def _utc(moment_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment_s))
