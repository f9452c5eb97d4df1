"""What a durable commit takes on this machine at this moment, with nothing around it: what `bench.ledger` is compared with."""

import sqlite3
import time
from pathlib import Path

import psycopg

SIZE = 200
"""Of the row. It differs each time: SQLite writes nothing for what is the same."""


def commits_s(place: str, folder: Path, seconds: float) -> list[float]:
    """One small row changed and committed, again and again."""
    return _postgresql(place, seconds) if "://" in place else _sqlite(folder / "yardstick.db", seconds)


def _sqlite(path: Path, seconds: float) -> list[float]:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v BLOB)")
    connection.execute("INSERT OR IGNORE INTO t VALUES (1, ?)", (_row(0),))
    samples: list[float] = []
    ends_s = time.monotonic() + seconds
    while (began_s := time.monotonic()) < ends_s:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE t SET v = ? WHERE id = 1", (_row(len(samples)),))
        connection.execute("COMMIT")
        samples.append(time.monotonic() - began_s)
    connection.close()
    return samples


def _postgresql(place: str, seconds: float) -> list[float]:
    with psycopg.connect(place) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS yardstick (id int PRIMARY KEY, v bytea)")
        connection.execute("INSERT INTO yardstick VALUES (1, %s) ON CONFLICT DO NOTHING", (_row(0),))
        connection.commit()
        samples: list[float] = []
        ends_s = time.monotonic() + seconds
        while (began_s := time.monotonic()) < ends_s:
            connection.execute("UPDATE yardstick SET v = %s WHERE id = 1", (_row(len(samples)),))
            connection.commit()
            samples.append(time.monotonic() - began_s)
    return samples


def _row(number: int) -> bytes:
    return number.to_bytes(SIZE, "big")
