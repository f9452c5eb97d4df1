"""`stepdown status`: every object with its status, as `kubectl get` would show it, and the money as it is now.

Of the cluster, or with -f from a folder and its ledger.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepdown.cli.cluster import Reach, asked, cluster_options, source
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
    from stepdown.model.base import Column
    from stepdown.reconcile import Pass

SECTIONS = ("RoutingProxy", "SpendBudget", "ModelRoute", "ModelCatalog")
MONEY = ("spentUSD", "reservedUSD", "unreconciledUSD", "remainingUSD", "limitUSD", "usedPercent")
TOLD = ("Accepted", "ResolvedRefs", "WithinBudget", "Reconciled")
"""Conditions that are told in words where they do not hold."""
TOLD_REASONS = ("ProxyLost",)
"""Of other conditions: what somebody has to see to."""
_CONDITION = re.compile(r'\.status\.conditions\[\?\(@\.type=="(\w+)"\)\]\.(\w+)')


@click.command()
@folder_or_cluster_option
@ledger_option
@proxy_option
@cluster_options(everywhere=True)
@output_option
def status(roots: tuple[str, ...], ledger_file: str | Path | None, proxy: str | None, reach: Reach, output: Format) -> None:
    """Show what is in force and what is spent.

    Of the cluster: what `kubectl get` shows, with the money as it is at this moment. With -f of a folder, whose ledger may be
    in use by `stepdown run`. -o yaml prints whole objects.
    """
    if source(reach, roots, ledger=ledger_file, proxy=proxy):
        from stepdown.cli.current import objects

        items, live = asked(reach, lambda cluster: objects(cluster, reach))
        title = "Money, now" if live else "Money, as last written"
    else:
        items = _from_folder(roots, ledger_file, proxy or "")
        title = "Money, in the ledger"
    if output != "table":
        print_machine({"apiVersion": "v1", "kind": "List", "items": items}, output)
        return
    if roots and ledger_file is None and not Path("stepdown.db").exists():
        click.echo("No ledger: nothing has been spent yet. Name it with --ledger once `stepdown run` has made one.\n")
    if not items:
        everywhere = "the cluster" if reach.everywhere else "this namespace; -A looks at all of them, -n NAME at another"
        click.echo(f"No objects of Stepdown in {everywhere}.", err=True)
    for kind in SECTIONS:
        mine = [item for item in items if item["kind"] == kind]
        _print_section(kind, mine)
        if kind == "SpendBudget":
            _print_money(title, mine)


def _from_folder(roots: tuple[str, ...], ledger_file: str | Path | None, proxy: str) -> list[dict[str, Any]]:
    from stepdown.cli.folder import ledger_view, read_folder
    from stepdown.sync.clock import now_s

    now = now_s()
    view = ledger_view(ledger_file, now)
    world = read_folder(roots, proxy, accepted=view.accepted).world
    # Whether a key is there is known to the process that serves, not to this one, whose environment may be another.
    world = replace(world, secrets={name: True for name, there in world.secrets.items() if there})
    made = _passed(world, view, now)
    return [_object(kind, key, made) for kind in SECTIONS for key in sorted(_keys(kind, made))]


def _passed(world: Any, view: Any, now: float) -> "Pass":
    """One pass; and once more, now that the configs are known, with the proxies of the ledger as serving by them.

    A running `stepdown run` has the folder in force within a second; what it could not accept is not in these configs either.
    """
    from stepdown.plan.world import ProxiesSeen
    from stepdown.reconcile import reconcile

    made = reconcile(world, view, now)
    seen = {
        fleet: ProxiesSeen(count, {index: {digest: count} for index, digest in made.configs[fleet].digests.items()})
        for fleet, seen in view.proxies.items()
        if fleet in made.configs and (count := seen.ready) >= 0
    }
    return reconcile(world, replace(view, proxies=seen), now)


def _keys(kind: str, made: "Pass") -> list[str]:
    return [key for found, key in made.statuses if found == kind]


def _object(kind: Any, key: str, made: "Pass") -> dict[str, Any]:
    """The object as the API would have it, with the status that it has now."""
    plan = made.plan
    plans: Mapping[str, Any] = {
        "ModelRoute": plan.routes,
        "SpendBudget": plan.budgets,
        "RoutingProxy": plan.fleets,
        "ModelCatalog": plan.catalogs,
    }[kind]
    source = plans[key].source
    metadata: dict[str, Any] = {"name": source.name}
    if source.namespace:
        metadata["namespace"] = source.namespace
    if source.labels:
        metadata["labels"] = dict(source.labels)
    metadata["generation"] = source.generation
    spec = source.spec.model_dump(mode="json", by_alias=True, exclude_unset=True) if source.spec is not None else None
    found = {"apiVersion": "stepdown.dev/v1alpha1", "kind": kind, "metadata": metadata}
    return {**found, **({"spec": spec} if spec is not None else {}), "status": made.statuses[kind, key]}


def _print_section(kind: str, items: list[dict[str, Any]]) -> None:
    from stepdown.model.resources import KINDS
    from stepdown.sync.clock import now_s

    if not items:
        return
    # In a folder nothing has an age.
    aged = "creationTimestamp" in items[0]["metadata"]
    columns = [column for column in KINDS[kind].columns if not column.wide and (column.type != "date" or aged)]
    head = ["NAMESPACE", "NAME"] if KINDS[kind].namespaced else ["NAME"]
    rows = [
        [item["metadata"].get(field, "") for field in (["namespace", "name"] if KINDS[kind].namespaced else ["name"])]
        + [_cell(item, column, now_s()) for column in columns]
        for item in items
    ]
    print_table(kind, [*head, *(column.name.upper() for column in columns)], rows)
    for item in items:
        for condition in _status(item).get("conditions", ()):
            told = condition["type"] in TOLD or condition["reason"] in TOLD_REASONS
            if told and condition["status"] == "False":
                click.echo(f"  {item['metadata']['name']}: {condition['type']}=False, {condition['message']}")
    click.echo()


def _print_money(title: str, budgets: list[dict[str, Any]]) -> None:
    """To the last nano-dollar, what is spent apart from what is held."""
    rows = []
    for budget in budgets:
        status, metadata = _status(budget), budget["metadata"]
        rows.append([metadata.get("namespace", ""), metadata["name"], *(str(status.get(field, "")) for field in MONEY)])
    if rows:
        columns = ["SPENT $", "RESERVED $", "UNRECONCILED $", "REMAINING $", "LIMIT $", "USED %"]
        print_table(title, ["NAMESPACE", "NAME", *columns], rows, right=columns)
        for budget in budgets:
            if models := _status(budget).get("exceededBy"):
                usd = _status(budget).get("excessUSD", "0.00")
                more = f"; ${usd} of what is spent is beyond all that was reserved" if usd != "0.00" else ""
                click.echo(f"  {budget['metadata']['name']}: {', '.join(models)} answered more than max_tokens allows{more}")
        click.echo()


def _status(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Empty where nobody has written it yet."""
    found: Mapping[str, Any] = item.get("status") or {}
    return found


def _cell(item: Mapping[str, Any], column: "Column", now_s: float) -> str:
    """The value at a column's simple JSONPath; empty where there is none, as kubectl has it."""
    found = _CONDITION.fullmatch(column.path)
    if found:
        conditions = _status(item).get("conditions", ())
        return next((str(each[found[2]]) for each in conditions if each["type"] == found[1]), "")
    value: Any = item
    for step in column.path.lstrip(".").split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    if value is not None and column.type == "date":
        return _age(now_s - datetime.fromisoformat(value).timestamp())
    return "" if value is None else str(value)


def _age(seconds: float) -> str:
    """As kubectl has it, but for the second unit that it gives to some."""
    for unit, size, enough in (("s", 1, 120), ("m", 60, 10_800), ("h", 3600, 172_800)):
        if seconds < enough:
            return f"{max(0, int(seconds // size))}{unit}"
    return f"{int(seconds // 86_400)}d"
