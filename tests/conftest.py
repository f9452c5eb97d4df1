"""What every test folder shares: the `--rewrite-golden` flag, registered at the root for any selection of tests, and that no
property has a time limit: a machine that many share is slow now and then, and says nothing about the code."""

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        default=False,
        help="write tests/golden/*.out.yaml from what the code says now; read the diff before you commit it",
    )


@pytest.fixture
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite-golden"))
