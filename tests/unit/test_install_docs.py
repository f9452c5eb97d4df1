"""What docs/install.md and the README tell people to type is what there is. If these fail, an installation ends half way."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from release import helm

from stepdown.model import conditions
from stepdown.model.errors import parse

ROOT = Path(__file__).parents[2]
INSTALL = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCHEMA = json.loads((helm.CHART / "values.schema.json").read_text())


def settings() -> Iterator[str]:
    """Every setting of the chart that is named, by its whole path."""
    for text in (INSTALL, README):
        yield from re.findall(r"--set '?([\w.]+)=", text)
    for row in re.findall(r"^\| (`[^|]+) \|", INSTALL.partition("## With kubectl")[0], re.MULTILINE):
        first = ""
        for name in re.findall(r"`([\w.]+)`", row):
            path = first + name if name.startswith(".") else name
            first = path.rpartition(".")[0]
            yield path
    yield from ("networkPolicy.apiServerPorts", "persistence.enabled", "rbac.aggregate")


def test_every_setting_exists() -> None:
    """The chart refuses one that does not."""
    found = list(settings())
    assert len(found) >= 15
    for path in found:
        node: dict[str, Any] = SCHEMA
        for name in path.split("."):
            assert name in node["properties"], path
            node = node["properties"][name]


def test_the_chart_takes_what_the_readme_sets() -> None:
    """The first command of the quick start."""
    image = re.search(r"--set image.repository=(\S+)", README)
    (fleets,) = re.findall(r"--set 'fleetNamespaces=\{(.*?)\}'", README)
    assert image is not None
    assert helm.objects({"image": {"repository": image[1]}, "fleetNamespaces": fleets.split(",")})
    assert re.search(rf"TAG={re.escape(image[1])}:", README), "what is installed is what was built"


def test_the_readme_s_fleet_is_valid_and_serves_its_route() -> None:
    """The second command: the route of the first screen names no proxy, so it wants the one called default in its namespace."""
    (block,) = re.findall(r"<<EOF\n(.*?)\nEOF", README, re.DOTALL)
    fleet = parse(yaml.safe_load(block))
    (policy,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    route, budget = (parse(document) for document in yaml.safe_load_all(policy))
    assert fleet.metadata.name == "default"
    assert fleet.metadata.namespace == route.metadata.namespace == budget.metadata.namespace
    (fleets,) = re.findall(r"--set 'fleetNamespaces=\{(.*?)\}'", README)
    assert fleet.metadata.namespace in fleets.split(",")
    secret = fleet.spec.upstream.channels[0].api_key_secret_ref
    assert f"secret generic {secret.name} --from-literal={secret.key}=" in README
    assert re.findall(r'"model": "([\w-]+)"', README) == [route.metadata.name] * 2


@pytest.mark.parametrize("text", [INSTALL, README], ids=["install.md", "README.md"])
def test_every_folder_file_and_target_exists(text: str) -> None:
    """`kubectl apply -k` of nothing."""
    for path in re.findall(r"\b((?:manifests|charts|crds|bench|docs)/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets


def test_every_reason_is_one_that_the_operator_gives() -> None:
    """People search a page for the word that they see."""
    known = {value for name, value in vars(conditions).items() if name.isupper() and isinstance(value, str)}
    table = INSTALL.partition("## If it does not work")[2]
    named = set(re.findall(r"`([A-Z]\w+)`", table)) | set(re.findall(r"`([A-Z]\w+)=", table))
    assert {"NotAllowed", "SecretNotFound", "Accepted"} <= named <= known | {"Ready"}
