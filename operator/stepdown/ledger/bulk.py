"""Many rows by one statement: what a message changes is dozens of rows, and each would cost a round trip, or a page of Python.

`store` and `traffic` write by this. A row is there afterwards as it was given, whether it was there before or not. The text is
the same for both databases but for where its rows come from: PostgreSQL gets the columns as arrays, in one round trip however
many rows there are; SQLite, which has no round trip, takes row after row.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa


def put(
    connection: sa.Connection,
    table: sa.Table,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
    *,
    only_up: bool = False,
) -> None:
    """Rows of these columns, the primary key among them and no key twice; columns that are not named stay as they are.

    `only_up`: a number that is there already stays, if it is larger.
    """
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        arrays = tuple(map(_array, (table.c[name] for name in columns), zip(*rows, strict=True)))
        connection.exec_driver_sql(_text(table, columns, _unnested(table, columns, connection.dialect), only_up), arrays)
    else:
        connection.exec_driver_sql(_text(table, columns, f"VALUES ({', '.join('?' * len(columns))})", only_up), list(rows))


def _array(column: sa.Column[Any], values: tuple[Any, ...]) -> object:
    """Numbers as PostgreSQL writes an array of them: the driver would look at each for its size."""
    return f"{{{','.join(map(str, values))}}}" if isinstance(column.type, sa.Integer) else list(values)


@lru_cache(maxsize=64)
def _text(table: sa.Table, columns: tuple[str, ...], source: str, only_up: bool) -> str:
    keys = [column.name for column in table.primary_key]
    value = "CASE WHEN excluded.{0} > {1}.{0} THEN excluded.{0} ELSE {1}.{0} END" if only_up else "excluded.{0}"
    grown = ", ".join(f"{name} = {value.format(name, table.name)}" for name in columns if name not in keys)
    return f"INSERT INTO {table.name} ({', '.join(columns)}) {source} ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {grown}"


@lru_cache(maxsize=64)
def _unnested(table: sa.Table, columns: tuple[str, ...], dialect: sa.Dialect) -> str:
    arrays = (f"%s::{table.c[name].type.compile(dialect)}[]" for name in columns)
    return f"SELECT * FROM unnest({', '.join(arrays)})"
