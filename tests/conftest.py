"""What every test folder shares: the `--rewrite-golden` flag, registered at the root for any selection of tests."""

import pytest


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
