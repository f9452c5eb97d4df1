"""What every test folder shares: the `--rewrite-golden` flag, registered at the root for any selection of tests, and how
properties look for their examples.

A gate is not a search: the same commit passes or fails everywhere, so `make test` tries the same examples each time.
`make fuzz` tries others, and many more. No property has a time limit: a machine that many share is slow now and then, and
says nothing about the code.
"""

import pytest
from hypothesis import settings

settings.register_profile("gate", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile("gate")


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
