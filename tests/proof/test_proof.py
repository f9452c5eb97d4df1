"""A few of the schedules of `make prove`, and keepers that are broken on purpose. If these fail, no promise of the product
holds, or the proof could not tell."""

import pytest

from tests.proof.schedule import play
from tests.proof.truth import Violation


@pytest.mark.parametrize("seed", range(1, 9))
def test_the_ceiling_holds_whatever_goes_wrong(seed: int) -> None:
    """Somebody's bill would pass the ceiling, or a request be refused that there was money for. `make prove` has a thousand."""
    play(seed)


def found_out(broken: str, seeds: range) -> str:
    """What the first seed says that tells of money that was spent and is not known, or was not there."""
    for seed in seeds:
        try:
            play(seed, broken=broken)
        except Violation as violation:
            if str(violation).startswith(("over: ", "lost: ")):
                return str(violation)
    return ""


def test_a_keeper_that_forgets_its_grants_is_found_out() -> None:
    """The proof would say OK of anything."""
    assert found_out("forgets", range(1, 12))


def test_a_ledger_put_back_without_a_witness_is_found_out() -> None:
    """The proof would not see what the witness is for."""
    assert found_out("no witness", range(1, 12))


def test_a_seed_tells_the_same_story_twice() -> None:
    """A failure could not be replayed."""
    assert play(5) == play(5)
