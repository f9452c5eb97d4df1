"""A golden case: objects and money at one moment after another, each judged with the pass before; what the last one says.

The input has `stages`, each with `now`, `objects` (as in a folder) or the project's `folder` that has them, and optionally
`spent` (USD settled by budget, in the account of that moment), `overruns` (likewise, by model) and `proxies` (ready proxies
that serve the config of the stage before, by RoutingProxy).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import yaml

from stepdown.budget.account import Balance
from stepdown.model.base import API_VERSION
from stepdown.model.errors import InvalidObject, parse
from stepdown.model.money import usd_to_nusd
from stepdown.model.quantity import moment_s
from stepdown.model.resources import ModelCatalog, ModelRoute, RoutingProxy, SpendBudget
from stepdown.model.traffic import Overrun
from stepdown.plan.routes import RoutePlan
from stepdown.plan.world import AcceptedSpec, Invalid, LedgerView, ProxiesSeen, World
from stepdown.reconcile import Pass, reconcile


def judged(case: Mapping[str, Any]) -> dict[str, Any]:
    """The golden output of a case."""
    balances: dict[str, Balance] = {}
    accepted: dict[str, AcceptedSpec] = {}
    made: Pass | None = None
    now_s = 0
    for stage in case["stages"]:
        now_s = moment_s(stage["now"])
        world = world_of(stage["objects"] if "objects" in stage else _folder(stage["folder"]))
        proxies = {
            key: ProxiesSeen(count, {i: {d: count} for i, d in made.configs[key].digests.items()} if made else {})
            for key, count in stage.get("proxies", {}).items()
        }
        view = LedgerView(balances, accepted, proxies=proxies)
        for binding in reconcile(world, view, now_s, made).bindings:
            known = balances.get(binding.account)
            fresh = Balance(binding.account, binding.budget, binding.start_s, binding.end_s, binding.limit_nusd, enforced=True)
            balances[binding.account] = replace(known or fresh, end_s=binding.end_s, limit_nusd=binding.limit_nusd)
        for key, usd in stage.get("spent", {}).items():
            account = next(each for each in balances.values() if each.budget == key and each.start_s <= now_s < each.end_s)
            balances[account.account] = replace(account, settled_nusd=usd_to_nusd(usd))
        for key, models in stage.get("overruns", {}).items():
            account = next(each for each in balances.values() if each.budget == key and each.start_s <= now_s < each.end_s)
            seen = tuple(Overrun(model, usd_to_nusd(usd), int(now_s // 86_400)) for model, usd in models.items())
            balances[account.account] = replace(account, overruns=seen, excess_nusd=sum(each.nusd for each in seen))
        made = reconcile(world, LedgerView(balances, accepted, proxies=proxies), now_s, made)
        accepted |= dict(made.accept)
    assert made is not None
    return {"plan": _plan(made), "render": _render(made), "status": _status(made)}


def _folder(name: str) -> list[Mapping[str, Any]]:
    files = sorted((Path(__file__).parents[2] / name).glob("*.yaml"))
    documents = [document for file in files for document in yaml.safe_load_all(file.read_text())]
    return [document for document in documents if document["apiVersion"] == API_VERSION]


def world_of(documents: list[Mapping[str, Any]]) -> World:
    """The documents as a shell would hand them over, those that are not valid included."""
    valid: list[Any] = []
    invalid: list[Invalid] = []
    for document in documents:
        try:
            valid.append(parse(document))
        except InvalidObject as error:
            meta = document["metadata"]
            invalid.append(
                Invalid(
                    kind=document["kind"],
                    namespace=meta["namespace"],
                    name=meta["name"],
                    message="; ".join(f"{each.field} {each.message}" for each in error.problems),
                    raw=document,
                    generation=meta.get("generation", 0),
                    labels=meta.get("labels", {}),
                )
            )
    return World(
        routes=tuple(each for each in valid if isinstance(each, ModelRoute)),
        budgets=tuple(each for each in valid if isinstance(each, SpendBudget)),
        proxies=tuple(each for each in valid if isinstance(each, RoutingProxy)),
        catalogs=tuple(each for each in valid if isinstance(each, ModelCatalog)),
        invalid=tuple(invalid),
    )


def _plan(made: Pass) -> dict[str, Any]:
    return {key: _route(plan) for key, plan in sorted(made.plan.routes.items())}


def _route(plan: RoutePlan) -> dict[str, Any]:
    rejected = plan.ladders.rejected if plan.ladders is not None else ()
    return {
        "inForce": plan.in_force,
        "refuse": plan.refuse,
        "classes": {
            name: {
                "rungs": [f"{rung.upstream_id} ({rung.tier})" for rung in each.rungs],
                "hidden": each.in_force,
                "hiddenBy": each.hidden_by,
                "why": each.why,
                "fallbacks": [rung.upstream_id for rung in each.fallbacks],
            }
            for name, each in plan.classes.items()
        },
        "rejected": {f"{each.field} {each.model}".strip(): each.reason for each in rejected if each.field},
        "rejectedOfTheCatalog": sum(not each.field for each in rejected),
    }


def _render(made: Pass) -> dict[str, Any]:
    return {
        key: {
            "fleet": msgspec.to_builtins(config.fleet),
            "shards": {index: msgspec.to_builtins(shard) for index, shard in config.shards.items() if shard.routes},
        }
        for key, config in sorted(made.configs.items())
    }


def _status(made: Pass) -> dict[str, Any]:
    return {
        "documents": {f"{kind} {key}": document for (kind, key), document in sorted(made.statuses.items())},
        "events": [f"{each.type} {each.reason} {each.kind} {each.key}: {each.message}" for each in made.events],
        "nextChange": made.next_change_s,
    }
