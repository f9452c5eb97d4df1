"""The chart, through Helm's own code as a library: what `release.manifests` and the tests of the chart render, lint, install.

A release's name and namespace are those that every page of the documentation uses.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parents[1] / "charts" / "stepdown"
NAME = "stepdown"
NAMESPACE = "stepdown-system"

Object = dict[str, Any]


def render(values: Mapping[str, Any] | None = None, *, namespace: str = NAMESPACE, chart: Path = CHART) -> dict[str, str]:
    """The text of each template by its path below `templates/`. Raises helm_python's errors, as Helm says them."""
    with helm_python.Chart.load(chart) as loaded:
        rendered = loaded.render(dict(values or {}), name=NAME, namespace=namespace)
    return {path.partition("/templates/")[2]: text for path, text in rendered.items() if text.strip()}


def objects(values: Mapping[str, Any] | None = None, *, namespace: str = NAMESPACE, chart: Path = CHART) -> list[Object]:
    """Every object that the chart makes of these values, in the order of the templates' names."""
    texts = render(values, namespace=namespace, chart=chart)
    return [
        document
        for path, text in sorted(texts.items())
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document is not None
    ]
