"""Under which purchase order each route's spend is booked. `sync.keeper` keeps the answer in the ledger, day by day.

A label says it: of the ModelRoute, else of a SpendBudget that binds it, else of its namespace; so that a team states it once,
and one project of the team apart. A statement is made after the month, when route and label may be gone: hence the ledger.
"""

from collections.abc import Mapping

from stepdown.plan.plan import Plan
from stepdown.plan.world import Invalid

PURCHASE_ORDER = "stepdown.dev/purchase-order"


def purchase_orders(plan: Plan) -> dict[str, str]:
    """By route: its purchase order; empty where nothing says one. Of two budgets that say one, the first by name."""
    stated = {
        key: each.source.labels[PURCHASE_ORDER] for key, each in plan.budgets.items() if each.source.labels.get(PURCHASE_ORDER)
    }
    by_budget: dict[str, str] = {}
    for key in sorted(stated, reverse=True):
        by_budget |= dict.fromkeys(plan.budgets[key].members, stated[key])
    spaces = {name: labels.get(PURCHASE_ORDER, "") for name, labels in plan.world.namespace_labels.items()}
    found = {}
    for key, thing in plan.things.items():
        labels: Mapping[str, str] = thing.labels if isinstance(thing, Invalid) else thing.metadata.labels
        found[key] = labels.get(PURCHASE_ORDER) or by_budget.get(key) or spaces.get(thing.namespace, "")
    return found
