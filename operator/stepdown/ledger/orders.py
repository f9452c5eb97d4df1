"""Purchase orders of routes, from which day on. `Ledger` calls this: what is kept here outlives the route and its label."""

from collections.abc import Mapping

import sqlalchemy as sa

from stepdown.budget.statement import Orders
from stepdown.ledger.schema import names as names_table
from stepdown.ledger.schema import purchase_orders
from stepdown.ledger.store import Names, chunks

MAX_REFERENCE = 63
"""A label's value."""


def book(connection: sa.Connection, names: Names, references: Mapping[str, str], day: int) -> None:
    """From this UTC day on. What was said on the same day before is forgotten."""
    ids = names.ids(connection, references.keys())
    for part in chunks([{"r": ids[route], "d": day, "reference": each[:MAX_REFERENCE]} for route, each in references.items()]):
        this = (purchase_orders.c.route == sa.bindparam("r"), purchase_orders.c.day == sa.bindparam("d"))
        connection.execute(purchase_orders.delete().where(*this), [{"r": each["r"], "d": each["d"]} for each in part])
        connection.execute(
            purchase_orders.insert(), [{"route": each["r"], "day": each["d"], "reference": each["reference"]} for each in part]
        )


def booked(connection: sa.Connection) -> dict[str, Orders]:
    """By route: the days from which on it was booked under what, ascending."""
    select = sa.select(names_table.c.name, purchase_orders.c.day, purchase_orders.c.reference).join(
        names_table, names_table.c.id == purchase_orders.c.route
    )
    found: dict[str, Orders] = {}
    for route, day, reference in connection.execute(select.order_by(purchase_orders.c.route, purchase_orders.c.day)):
        found[route] = (*found.get(route, ()), (day, reference))
    return found
