"""One of the schedules of `make prove-real`, and one with a witness that is deleted. If these fail, money is lost or doubled
between real processes, or the proof could not tell."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

_TIMEOUT_S = 420


def played(*arguments: str) -> tuple[int, str]:
    """What it says."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.proof.real", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(_TIMEOUT_S + 30)
def test_the_ceiling_holds_between_real_processes_whatever_goes_wrong(tmp_path: Path) -> None:
    """Somebody's bill would pass the ceiling, or money that nobody spent be gone. `make prove-real` has thirty."""
    code, said = played("--seed", "3", "--keep", str(tmp_path))
    assert code == 0, said
    assert re.search(r"^OK 1 schedules: 0 over, 0 false refusals, 0 lost, max unreconciled \d+ nUSD$", said, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(_TIMEOUT_S + 30)
def test_a_ledger_put_back_without_its_witness_is_found_out_between_real_processes(tmp_path: Path) -> None:
    """The proof would say OK of anything."""
    code, said = played("--seed", "1", "--broken", "no witness", "--keep", str(tmp_path))
    assert code == 1, said
    assert re.search(r"^FAILED seed 1: (over|lost): ", said, re.MULTILINE), said
