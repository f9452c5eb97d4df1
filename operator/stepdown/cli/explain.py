"""`stepdown explain ROUTE`: why a request of a route is answered by the model that answers it, and by no other.

Of the cluster, or with -f of a folder: the same plan is made of both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepdown.cli.cluster import Reach, asked, cluster_options, source
from stepdown.cli.completion import complete_route
from stepdown.cli.errors import CommandError
from stepdown.cli.output import (
    Format,
    folder_or_cluster_option,
    ledger_option,
    output_option,
    print_machine,
    print_table,
    proxy_option,
)

if TYPE_CHECKING:
    from stepdown.local.world import Gathered
    from stepdown.plan.plan import Plan
    from stepdown.plan.routes import ClassPlan, RoutePlan
    from stepdown.plan.rungs import Rung

CLASSES = ("default", "critical", "background")


@click.command()
@click.argument("route", shell_complete=complete_route)
@folder_or_cluster_option
@ledger_option
@proxy_option
@click.option("--class", "request_class", type=click.Choice(CLASSES), help="Only this class of requests.")
@cluster_options(everywhere=False)
@output_option
def explain(
    route: str,
    roots: tuple[str, ...],
    ledger_file: str | Path | None,
    proxy: str | None,
    request_class: str | None,
    reach: Reach,
    output: Format,
) -> None:
    """Show a route's ladders, the rung in force, and why every other model is not on them.

    ROUTE is NAME or NAMESPACE/NAME, with :critical or :background if you like, as a client would write it. It is looked for in
    the cluster, or with -f in a folder.
    """
    name, _, suffix = route.partition(":")
    if suffix and suffix not in CLASSES:
        raise click.BadParameter(f"{suffix!r} is not a class of requests; write {', '.join(CLASSES)}", param_hint="ROUTE")
    if source(reach, roots, ledger=ledger_file, proxy=proxy):
        from stepdown.cli.sight import route_in_cluster

        plan, found = asked(reach, lambda cluster: route_in_cluster(cluster, reach, name))
    else:
        plan, found = _route_in_folder(roots, ledger_file, proxy or "", name)
    chosen = request_class or suffix
    classes = {
        each: view
        for each, view in found.classes.items()
        if not chosen or each == (chosen if chosen in found.classes else "default")
    }
    if output != "table":
        print_machine(_as_json(found, classes, plan), output)
    else:
        _print(found, classes, plan)


def _route_in_folder(roots: tuple[str, ...], ledger_file: str | Path | None, proxy: str, name: str) -> "tuple[Plan, RoutePlan]":
    from stepdown.cli.folder import ledger_view, read_folder
    from stepdown.plan.plan import make_plan
    from stepdown.sync.clock import now_s

    now = now_s()
    view = ledger_view(ledger_file, now)
    gathered = read_folder(roots, proxy, accepted=view.accepted)
    plan = make_plan(gathered.world, view, now)
    return plan, _find(name, plan, gathered)


def _find(name: str, plan: "Plan", gathered: "Gathered") -> "RoutePlan":
    """By `namespace/name`; a bare name is looked for in the fleet's namespace first, then wherever there is just one."""
    from stepdown.model.names import did_you_mean

    fleet_namespace = gathered.fleet.partition("/")[0]
    keys = [name] if "/" in name else [f"{fleet_namespace}/{name}", *(key for key in plan.routes if key.endswith(f"/{name}"))]
    known = [key for key in dict.fromkeys(keys) if key in plan.routes]
    if not known:
        short = did_you_mean(name, {key if "/" in name else key.partition("/")[2] for key in plan.routes})
        raise CommandError(f"there is no ModelRoute {name!r}{short}; the folder has {_some(sorted(plan.routes))}")
    if len(known) > 1 and known[0] != f"{fleet_namespace}/{name}":
        raise CommandError(f"several routes are named {name!r}: write one of {', '.join(known)}")
    return plan.routes[known[0]]


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") if names else "none"


def _print(route: "RoutePlan", classes: "Mapping[Any, ClassPlan]", plan: "Plan") -> None:
    click.echo(
        click.style(f"ModelRoute {route.key}", bold=True) + (f"   fleet {route.fleet}" if route.fleet else "   no fleet")
    )
    for finding in (route.accepted, route.resolved):
        if not finding.holds:
            click.echo(f"  not accepted: {finding.message}")
            break
    if route.refuse:
        click.echo(f"  every request is refused: {route.refuse}")
    for force in route.forces:
        click.echo(f"  budget {force.budget}: {_budget(force.budget, plan)}")
        for warning in _unheld(force.budget, plan):
            click.echo(click.wrap_text(warning, _width(), "    ", "    "))
    if not route.forces:
        click.echo("  no budget binds it: nothing is ever stepped down or refused for money")
    for name, each in classes.items():
        _print_class(name, each)
    absent = [name for name in CLASSES if name not in route.classes]
    if absent and len(classes) == len(route.classes) and classes:
        click.echo(f"\nClass {' and '.join(absent)}: as default")
    _print_margins(classes, _margins(route, plan))
    if route.ladders is not None and route.ladders.rejected:
        why: dict[str, list[str]] = {}
        for rejected in route.ladders.rejected:
            why.setdefault(rejected.reason.partition(". ")[0], []).append(rejected.model)
        click.echo(click.style("\nNot on the default ladder", bold=True))
        for reason, models in why.items():
            click.echo(click.wrap_text(", ".join(models), _width(), "  ", "  "))
            click.echo(click.wrap_text(reason, _width(), "      ", "      "))


def _width() -> int:
    import shutil

    return min(100, shutil.get_terminal_size().columns)


def _print_class(name: str, each: "ClassPlan") -> None:
    click.echo()
    served = each.served_by
    why = "as wanted" if each.why == "Wanted" else f"{each.why}, by {each.hidden_by} (at most {each.max_tier})"
    rows = []
    for index, rung in enumerate(each.rungs):
        state = "in force" if index == each.in_force else "hidden" if index < each.in_force else ""
        rows.append([*_rung(rung), state])
    print_table(
        f"Class {name}: {served.model.name} ({served.tier}), {why}",
        ["RUNG", "ASKED FOR AS", "TIER", "INPUT $/M", "OUTPUT $/M", ""],
        rows,
        right=["INPUT $/M", "OUTPUT $/M"],
    )
    if each.fallbacks:
        click.echo(f"On an outage: {', '.join(rung.model.name for rung in each.fallbacks)}")


def _margins(route: "RoutePlan", plan: "Plan") -> Mapping[str, int]:
    """By model: what its requests reserve in nUSD beyond their worst case."""
    fleet = plan.fleets.get(route.fleet)
    return fleet.market.overruns if fleet is not None and fleet.market is not None else {}


def _print_margins(classes: "Mapping[Any, ClassPlan]", margins: Mapping[str, int]) -> None:
    """Why a request does not fit though its worst case would."""
    from stepdown.model.money import nusd_to_usd

    rungs = [rung for each in classes.values() for rung in (*each.rungs, *each.fallbacks)]
    models = dict.fromkeys(rung.model.name for rung in rungs if margins.get(rung.model.name))
    if models:
        click.echo(click.style("\nReserved beyond the worst case", bold=True))
    for model in models:
        text = f"{model}: ${nusd_to_usd(margins[model])} a request, since it has answered more than max_tokens allows"
        click.echo(click.wrap_text(text, _width(), "  ", "      "))


def _rung(rung: "Rung") -> list[str]:
    from stepdown.model.money import pusd_to_usd_per_mtok

    prices = [
        "?" if price is None else pusd_to_usd_per_mtok(price) for price in (rung.model.input_pusd, rung.model.output_pusd)
    ]
    return [rung.model.name, rung.upstream_id, rung.tier, *prices]


def _budget(key: str, plan: "Plan") -> str:
    from stepdown.budget.verdict import percent
    from stepdown.model.money import nusd_to_usd

    budget = plan.budgets[key]
    if budget.terms is None or budget.verdict is None:
        return "never valid, so its routes are refused"
    kind = "Hard" if budget.terms.hard else "Soft"
    step = budget.verdict.step
    state = "no step reached" if step is None else f"step at {step.at_percent} %: {step.action} {step.max_tier or ''}".strip()
    return f"{kind}, ${nusd_to_usd(budget.limit_nusd)} a month, {percent(budget.used)} % used, {state}"


def _unheld(key: str, plan: "Plan") -> list[str]:
    """What somebody has to see to before the ceiling holds."""
    from stepdown.model.conditions import PROXY_LOST
    from stepdown.status.budgets import enforced

    said = enforced(plan.budgets[key])
    return [f"not enforced: {said.message}"] if said.reason == PROXY_LOST else []


def _as_json(route: "RoutePlan", classes: "Mapping[Any, ClassPlan]", plan: "Plan") -> dict[str, Any]:
    from stepdown.budget.verdict import percent
    from stepdown.model.money import nusd_to_usd

    margins = _margins(route, plan)

    def rung_json(rung: "Rung") -> dict[str, Any]:
        name, upstream_id, tier, input_usd, output_usd = _rung(rung)
        return {
            "model": name,
            "upstreamId": upstream_id,
            "tier": tier,
            "inputUSDPerMTok": None if input_usd == "?" else input_usd,
            "outputUSDPerMTok": None if output_usd == "?" else output_usd,
            "marginUSD": nusd_to_usd(margins.get(name, 0)),
        }

    return {
        "route": route.key,
        "fleet": route.fleet,
        "accepted": route.accepted.holds and route.resolved.holds,
        "message": "" if route.accepted.holds and route.resolved.holds else (route.accepted.message or route.resolved.message),
        "refuse": route.refuse,
        "budgets": [
            {"name": force.budget, "hard": force.hard, "usedPercent": percent(plan.budgets[force.budget].used)}
            for force in route.forces
        ],
        "classes": {
            name: {
                "reason": each.why,
                "budget": each.hidden_by,
                "maxTier": each.max_tier,
                "inForce": rung_json(each.served_by),
                "hidden": [rung_json(rung) for rung in each.rungs[: each.in_force]],
                "rungs": [rung_json(rung) for rung in each.rungs[each.in_force :]],
                "fallbacks": [rung_json(rung) for rung in each.fallbacks],
            }
            for name, each in classes.items()
        },
        "rejected": [
            {"model": each.model, "field": each.field, "reason": each.reason}
            for each in (route.ladders.rejected if route.ladders is not None else ())
        ],
    }
