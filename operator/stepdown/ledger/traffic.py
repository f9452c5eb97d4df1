"""Counters: what every route, model and class has served and cost, by UTC day and instance. `Ledger` calls this.

They are cumulative over the life of an instance, so merging is taking the larger: a report may be lost, repeated or reordered.
A closed instance's counters are added to nobody's (instance 0), so the table grows with traffic's variety, not with pods.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from stepdown.ledger.bulk import put
from stepdown.ledger.schema import bindings, counters, overruns
from stepdown.ledger.schema import names as names_table
from stepdown.ledger.store import Names, chunks
from stepdown.model.config import CLASSES, RequestClass
from stepdown.model.sync import Counter
from stepdown.model.traffic import Overrun

KEYS = ("route", "day", "instance", "model", "request_class")
SUMS = (
    "requests",
    "successes",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "cost_nusd",
    "estimated_nusd",
    "unpriced",
)
_CLASS = {name: index for index, name in enumerate(CLASSES)}

_STORED = sa.select(counters).where(
    counters.c.day.in_(sa.bindparam("days", expanding=True)),
    counters.c.route.in_(sa.bindparam("routes", expanding=True)),
    counters.c.instance.in_(sa.bindparam("instances", expanding=True)),
)
_COLUMNS = (*KEYS, *SUMS)

Key = tuple[int, ...]
Sums = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RouteTotal:
    """What one route has served in a span of days, over all its models, classes and instances."""

    route: str
    requests: int
    successes: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    cost_nusd: int
    estimated_nusd: int
    unpriced: int


def merge(connection: sa.Connection, names: Names, reports: Sequence[tuple[int, Sequence[Counter]]]) -> None:
    """Takes in what instances report, each number only upwards."""
    said = [each for _, some in reports for each in some]
    if not said:
        return
    ids = names.ids(connection, {each.route for each in said} | {each.model for each in said})
    wanted: dict[Key, Sums] = {}
    for instance, some in reports:
        for each in some:
            key = (ids[each.route], each.day, instance, ids[each.model], _CLASS[each.request_class])
            wanted[key] = _larger(wanted.get(key), tuple(getattr(each, name) for name in SUMS))
    put(connection, counters, _COLUMNS, [(*key, *sums) for key, sums in wanted.items()], only_up=True)
    _exceed(connection, [(ids[each.route], ids[each.model], each.day, each.overrun_nusd) for each in said if each.overrun_nusd])


def _exceed(connection: sa.Connection, said: Sequence[tuple[int, int, int, int]]) -> None:
    """Remembers the largest overrun of each route and model, and the last day of any."""
    for route, model, day, largest in said:
        this = (overruns.c.route == route, overruns.c.model == model)
        known = connection.execute(sa.select(overruns.c.day, overruns.c.largest).where(*this)).first()
        if known is None:
            connection.execute(overruns.insert().values(route=route, model=model, day=day, largest=largest))
        elif (day, largest) != (known.day, known.largest):
            newest = {"day": max(day, known.day), "largest": max(largest, known.largest)}
            connection.execute(overruns.update().where(*this).values(**newest))


def exceeded(connection: sa.Connection) -> dict[int, tuple[Overrun, ...]]:
    """By account: the models that did not keep to their bounds on the routes that it holds."""
    select = (
        sa.select(bindings.c.account, names_table.c.name, sa.func.max(overruns.c.largest), sa.func.max(overruns.c.day))
        .join(bindings, bindings.c.route == overruns.c.route)
        .join(names_table, names_table.c.id == overruns.c.model)
        .where(bindings.c.bound)
        .group_by(bindings.c.account, names_table.c.name)
        .order_by(names_table.c.name)
    )
    found: dict[int, tuple[Overrun, ...]] = {}
    for account, model, largest, day in connection.execute(select):
        found[account] = (*found.get(account, ()), Overrun(model, int(largest), day))
    return found


def fold(connection: sa.Connection, instance: int) -> None:
    """A closed instance's counters become nobody's."""
    rows = list(connection.execute(sa.select(counters).where(counters.c.instance == instance)))
    if not rows:
        return
    moved: dict[Key, Sums] = {(row[0], row[1], 0, row[3], row[4]): tuple(row[5:]) for row in rows}
    stored = _stored(connection, set(moved))
    for key, sums in stored.items():
        moved[key] = tuple(a + b for a, b in zip(sums, moved[key], strict=True))
    connection.execute(counters.delete().where(counters.c.instance == instance))
    put(connection, counters, _COLUMNS, [(*key, *sums) for key, sums in moved.items()])


def _stored(connection: sa.Connection, keys: set[Key]) -> dict[Key, Sums]:
    """Which of these rows exist, with what they hold."""
    found: dict[Key, Sums] = {}
    days = {key[1] for key in keys}
    instances = {key[2] for key in keys}
    for routes in chunks({key[0] for key in keys}):
        for row in connection.execute(_STORED, {"days": list(days), "routes": routes, "instances": list(instances)}):
            key = tuple(row[:5])
            if key in keys:
                found[key] = tuple(row[5:])
    return found


def _larger(one: Sums | None, other: Sums) -> Sums:
    return other if one is None else tuple(map(max, one, other))


def route_totals(connection: sa.Connection, names: Names, since_day: int, until_day: int) -> dict[str, RouteTotal]:
    """By route; both days included."""
    sums = [sa.func.sum(counters.c[name]) for name in SUMS]
    select = (
        sa.select(counters.c.route, *sums)
        .where(counters.c.day >= since_day, counters.c.day <= until_day)
        .group_by(counters.c.route)
    )
    known = names.names(connection)
    rows = (RouteTotal(known[row[0]], *(int(each) for each in row[1:])) for row in connection.execute(select))
    return {row.route: row for row in sorted(rows, key=lambda row: row.route)}


def totals(connection: sa.Connection, names: Names, since_day: int, until_day: int, by_day: bool) -> list[Counter]:
    """By route, model and class (and day), over all instances; both days included. Without `by_day`, the day is the first."""
    keys = [counters.c.route, counters.c.model, counters.c.request_class]
    day = counters.c.day if by_day else sa.func.min(counters.c.day)
    sums = [sa.func.sum(counters.c[name]) for name in SUMS]
    select = (
        sa.select(*keys, day, *sums)
        .where(counters.c.day >= since_day, counters.c.day <= until_day)
        .group_by(*keys, *([counters.c.day] if by_day else []))
    )
    known = names.names(connection)
    found = []
    for route, model, request_class, on, *numbers in connection.execute(select):
        kind: RequestClass = CLASSES[request_class]
        plain = dict(zip(SUMS, (int(each) for each in numbers), strict=True))
        found.append(Counter(route=known[route], model=known[model], request_class=kind, day=on, **plain))
    return sorted(found, key=lambda each: (each.route, each.day, each.model, each.request_class))
