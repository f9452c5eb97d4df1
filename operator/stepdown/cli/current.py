"""Objects as the cluster has them, for `status`: what `kubectl get` would show, with the money of this very moment in it.

Only the money is replaced. Conditions, tiers and models stay the operator's own words: it alone knows its proxies.
"""

from collections.abc import Mapping
from typing import Any

from stepdown.budget.account import Balance
from stepdown.budget.months import month_at
from stepdown.cli import live
from stepdown.cli.cluster import Reach, note, together
from stepdown.cluster.client import Cluster
from stepdown.cluster.errors import Forbidden, Unauthorized
from stepdown.cluster.kinds import MODEL_CATALOG, MODEL_ROUTE, ROUTING_PROXY, SPEND_BUDGET, KindRef
from stepdown.status import summary
from stepdown.status.budgets import money, money_summary
from stepdown.status.routes import spend
from stepdown.watch.views import Overview

Item = dict[str, Any]


async def objects(cluster: Cluster, reach: Reach) -> tuple[list[Item], bool]:
    """Of the namespace, or all; and whether their money is live. Says on stderr what is missing or old."""
    scope = reach.scope(cluster)
    kinds = (ROUTING_PROXY, SPEND_BUDGET, MODEL_ROUTE, MODEL_CATALOG)
    (known, why), *listed = await together(
        live.overview(cluster, reach.operator), *(_list(cluster, kind, scope) for kind in kinds)
    )
    items = [item for items in listed for item in sorted(items, key=_name)]
    if known is not None:
        return [with_money(item, known) for item in items], True
    if any(item["kind"] == "SpendBudget" for item in items):
        note(live.stale(why))
    return items, False


async def _list(cluster: Cluster, kind: KindRef, scope: str) -> list[Item]:
    try:
        found = (await cluster.list(kind, scope)).items
    except Unauthorized:
        raise
    except Forbidden:
        if kind.namespaced:
            raise
        note(f"you may not list {kind.kind}s: have the ClusterRole stepdown-view bound to you by a ClusterRoleBinding.")
        return []
    for item in found:
        item["metadata"].pop("managedFields", None)
    return [{"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in found]


def _name(item: Item) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def with_money(item: Item, known: Overview) -> Item:
    """The object, with those fields of its status that are money as the operator has them now."""
    key = "/".join(_name(item))
    status: Mapping[str, Any] = item.get("status") or {}
    if item["kind"] == "SpendBudget" and (balance := _balance(key, known)) is not None:
        brief = money_summary(balance, balance.limit_nusd, balance.used)
        sums = money(balance, balance.limit_nusd, balance.used)
        return {**item, "status": {**status, **sums, "summary": {**status.get("summary", {}), **brief}}}
    if item["kind"] == "ModelRoute" and (totals := known.totals.get(key)) is not None:
        now = {"spend": spend(totals, month_at(known.now_s, "UTC").month)}
        brief = {**status.get("summary", {}), "spent": summary.money(totals.cost_nusd)}
        return {**item, "status": {**status, **now, "summary": brief}}
    return item


def _balance(budget: str, known: Overview) -> Balance | None:
    """Of the account of the current period."""
    mine = (each for each in known.balances.values() if each.budget == budget)
    return next((each for each in mine if each.start_s <= known.now_s < each.end_s), None)
