"""Figures as they are now: from the operator, through the API server's proxy for Services. Where that is not allowed or the
operator is away, from what it last wrote into the objects' status, and then the command says so.

`status`, `explain`, `report` and `statement` use it.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from stepdown.cli.errors import ClusterUnreadable

if TYPE_CHECKING:
    from stepdown.budget.account import Balance
    from stepdown.budget.statement import MonthBooks
    from stepdown.cluster.client import Cluster
    from stepdown.cluster.errors import ClusterError
    from stepdown.model.sync import Counter
    from stepdown.watch.views import Overview

LIVE_SERVICE = "stepdown:http"
"""The operator's Service and port, as RBAC names them: the chart's Role stepdown-view-spend opens this and nothing else."""
ROLE = "stepdown-view-spend"


def path_of(namespace: str, view: str) -> str:
    """Through the API server."""
    return f"/api/v1/namespaces/{namespace}/services/{LIVE_SERVICE}/proxy/v1/{view}"


async def overview(cluster: "Cluster", namespace: str) -> "tuple[Overview | None, str]":
    """What the operator in that namespace knows; None with a sentence that says why it cannot be asked."""
    import msgspec

    from stepdown.cluster.errors import ClusterError
    from stepdown.watch.views import Overview

    try:
        return msgspec.json.decode(await cluster.raw_get(path_of(namespace, "status")), type=Overview), ""
    except ClusterError as error:
        return None, _why(error, namespace)
    except msgspec.DecodeError as error:
        return None, f"the operator in {namespace} answers what this version does not understand ({error})"


async def counters(cluster: "Cluster", namespace: str, first_day: int, last_day: int) -> "list[Counter]":
    """Traffic by route, model, class and day. Raises ClusterUnreadable: no object's status has this."""
    import msgspec

    from stepdown.cluster.errors import ClusterError
    from stepdown.model.sync import Counter

    try:
        body = await cluster.raw_get(path_of(namespace, f"counters?since_day={first_day}&until_day={last_day}"))
        return msgspec.json.decode(body, type=list[Counter])
    except ClusterError as error:
        why = _why(error, namespace)
    except msgspec.DecodeError as error:
        why = f"the operator in {namespace} answers what this version does not understand ({error})"
    raise ClusterUnreadable(f"a report is made of the operator's ledger, and {why}.")


async def books(cluster: "Cluster", namespace: str, first_day: int, last_day: int) -> "MonthBooks":
    """What a statement is made of. Raises ClusterUnreadable."""
    import msgspec

    from stepdown.budget.statement import MonthBooks
    from stepdown.cluster.errors import ClusterError

    try:
        body = await cluster.raw_get(path_of(namespace, f"books?since_day={first_day}&until_day={last_day}"))
        return msgspec.json.decode(body, type=MonthBooks)
    except ClusterError as error:
        why = _why(error, namespace)
    except msgspec.DecodeError as error:
        why = f"the operator in {namespace} answers what this version does not understand ({error})"
    raise ClusterUnreadable(f"a statement is made of the operator's ledger, and {why}.")


def _why(error: "ClusterError", namespace: str) -> str:
    from stepdown.cluster.errors import Forbidden, NotFound, NotServed, Unauthorized

    match error:
        case Unauthorized():
            return f"the cluster does not know you ({error})"
        case Forbidden():
            return f"you may not ask the operator: have the Role {ROLE} in {namespace} bound to you"
        case NotServed():
            return f"the operator in {namespace} is of a version that does not tell it"
        case NotFound():
            return f"there is no operator in {namespace}: say where it runs with --operator-namespace"
    return f"the operator in {namespace} does not answer ({error})"


def stale(why: str) -> str:
    """The note that goes with figures that are not live."""
    return (
        f"{why}. The figures are those that the operator last wrote into the objects' status: while it works, a budget's are up"
        " to 10 seconds old, a route's a minute or more."
    )


def balances(budgets: Iterable[Mapping[str, Any]]) -> "dict[str, Balance]":
    """Accounts as the SpendBudgets' own statuses tell them; what does not tell is left out."""
    made = (_balance(budget) for budget in budgets)
    return {each.account: each for each in made if each is not None}


def _balance(budget: Mapping[str, Any]) -> "Balance | None":
    from datetime import datetime

    from stepdown.budget.account import Balance
    from stepdown.model.config import account_id
    from stepdown.model.money import usd_to_nusd

    def nusd(field: str) -> int:
        usd = str(status[field])
        return -usd_to_nusd(usd[1:]) if usd.startswith("-") else usd_to_nusd(usd)

    status = budget.get("status") or {}
    key = f"{budget['metadata']['namespace']}/{budget['metadata']['name']}"
    try:
        start_s, end_s = (int(datetime.fromisoformat(status["period"][each]).timestamp()) for each in ("start", "end"))
        return Balance(
            account=account_id(key, start_s),
            budget=key,
            start_s=start_s,
            end_s=end_s,
            limit_nusd=nusd("limitUSD"),
            settled_nusd=nusd("spentUSD"),
            reserved_nusd=nusd("reservedUSD"),
            unreconciled_nusd=nusd("unreconciledUSD"),
        )
    except (KeyError, TypeError, ValueError):  # no spec of it was ever in force, or nobody has written its status yet
        return None
