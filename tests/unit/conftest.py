"""Where a ledger is kept: whoever tests what a ledger does takes `ledger_url`, and does it on both databases."""

import pytest

from tests.postgres import Server
from tests.postgres import postgres as postgres


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """Of no ledger yet."""
    if request.param == "SQLite":
        return ":memory:"
    server: Server = request.getfixturevalue("postgres")
    return server.database()
