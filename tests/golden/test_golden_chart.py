"""What the chart makes of its values is written down and read by a person: a change of it is what an upgrade does to a cluster.

`make golden` rewrites the files; the diff is the review. The CRDs are left out: they are generated, and checked where they are.
"""

from pathlib import Path

import pytest
import yaml
from release import helm

CASES = sorted((Path(__file__).parent / "chart").glob("*.in.yaml"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name.removesuffix(".in.yaml"))
def test_golden_chart(case: Path, rewrite_golden: bool) -> None:
    """The objects and the notes of the case are, word for word, what was reviewed."""
    out = case.with_name(case.name.replace(".in.", ".out."))
    rendered = helm.render(yaml.safe_load(case.read_text()))
    text = "".join(f"# --- {path}\n{each.strip()}\n" for path, each in sorted(rendered.items()) if not path.startswith("crds/"))
    if rewrite_golden:
        out.write_text(text)
    assert out.exists(), f"{out.name} is missing: run make golden, read it, commit it"
    assert out.read_text() == text


def test_there_are_cases() -> None:
    """A wrong path must not pass for a hundred per cent."""
    assert len(CASES) >= 3
