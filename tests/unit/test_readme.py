"""What the README tells a newcomer to write and to type is what works. If this fails, the first minute with Stepdown fails."""

import re
from pathlib import Path

import yaml

from stepdown.cli.app import COMMANDS
from stepdown.model.errors import parse
from stepdown.model.resources import ModelRoute, SpendBudget

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_screen_s_objects_are_valid() -> None:
    """People copy the first YAML that they see."""
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    route, budget = (parse(document) for document in yaml.safe_load_all(block))
    assert isinstance(route, ModelRoute) and isinstance(budget, SpendBudget)


def test_every_command_and_target_that_is_named_exists() -> None:
    """A command that does not exist makes a reader doubt the rest."""
    named = set(re.findall(r"(?:^|`)stepdown ([a-z]+)", README, re.MULTILINE))
    assert named and named <= set(COMMANDS)
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wanted = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= wanted <= targets


def test_every_file_that_is_linked_is_there() -> None:
    """A dead link on the front page."""
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link
