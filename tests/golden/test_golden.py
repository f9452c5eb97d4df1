"""Whatever a policy makes of a folder is written down and read by a person: a change of it is a change that users see.

`make golden` rewrites the files; the diff is the review.
"""

from pathlib import Path

import pytest
import yaml

from tests.golden.staged import judged

CASES = sorted(Path(__file__).parent.glob("*.in.yaml"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name.removesuffix(".in.yaml"))
def test_golden(case: Path, rewrite_golden: bool) -> None:
    """The plan, the config and the status of the case are, word for word, what was reviewed."""
    out = case.with_name(case.name.replace(".in.", ".out."))
    text = yaml.safe_dump(judged(yaml.safe_load(case.read_text())), sort_keys=False, width=120, allow_unicode=True)
    if rewrite_golden:
        out.write_text(text)
    assert out.exists(), f"{out.name} is missing: run make golden, read it, commit it"
    assert out.read_text() == text


def test_there_are_cases() -> None:
    """A wrong path must not pass for a hundred per cent."""
    assert len(CASES) >= 8
