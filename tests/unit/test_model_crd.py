"""The CRDs are what an API server takes, and say what the models say. If these fail, `kubectl apply` of our own files does.

The rules of structural schemas are written out here from the Kubernetes documentation (CustomResourceDefinitions, "Specifying a
structural schema"), so that a machine without an API server notices. All four were also put through the code of kube-apiserver
1.34 (apiextensions validation, with the cost of each CEL rule), and so were the objects of `model_refused`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from stepdown.model import crd
from stepdown.model.errors import parse
from stepdown.model.resources import KINDS
from tests.unit.model_refused import REFUSED

ROOT = Path(__file__).parents[2]
CRDS: dict[str, dict[str, Any]] = {name: yaml.safe_load(text) for name, text in crd.files().items()}
BY_KIND = {document["spec"]["names"]["kind"]: document for document in CRDS.values()}
SAMPLES = [
    document
    for path in [*sorted((ROOT / "manifests" / "samples").glob("*.yaml")), ROOT / "manifests" / "catalog" / "global-apis.yaml"]
    for document in yaml.safe_load_all(path.read_text())
    if document["apiVersion"].startswith("stepdown.dev/")
]

ALLOWED = {
    "type", "description", "properties", "required", "items", "additionalProperties", "enum", "default", "format", "pattern",
    "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-validations",
}  # fmt: skip

Node = dict[str, Any]


def schema(document: Node) -> Node:
    found: Node = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def walk(node: Node, path: str = "", in_list: bool = False) -> Iterator[tuple[str, Node, bool]]:
    """Every schema below one, with its path and whether it lies in a list or map item."""
    yield path, node, in_list
    for name, each in node.get("properties", {}).items():
        yield from walk(each, f"{path}.{name}", in_list)
    if "items" in node:
        yield from walk(node["items"], f"{path}[]", True)
    if "additionalProperties" in node:
        yield from walk(node["additionalProperties"], f"{path}{{}}", True)


@pytest.mark.parametrize("name", CRDS)
def test_what_is_committed_is_what_the_models_say(name: str) -> None:
    """A stale CRD refuses what the operator takes, or the other way round. `make generate` writes them."""
    assert (ROOT / "crds" / name).read_text() == crd.files()[name]


def test_no_other_file_is_there() -> None:
    """A CRD of a kind that is gone would still be installed."""
    assert {path.name for path in (ROOT / "crds").glob("*.yaml")} == set(CRDS)


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_structural(kind: str) -> None:
    """An API server refuses a CRD that is not, and with it the whole product."""
    for path, node, _ in walk(schema(BY_KIND[kind])):
        assert node.keys() <= ALLOWED, path
        assert node["type"] in ("object", "array", "string", "integer", "number", "boolean"), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert ("items" in node) == (node["type"] == "array"), path
        assert set(node.get("required", ())) <= set(node.get("properties", {})), path
        if path == ".metadata":
            assert node == {"type": "object"}, path
        for field in ("default", "enum"):
            assert node.get(field, 0) is not None, path


@pytest.mark.parametrize("kind", KINDS)
def test_lists_say_how_they_merge(kind: str) -> None:
    """Two owners of one list would overwrite each other's items, or keep both for ever."""
    maps = []
    for path, node, _ in walk(schema(BY_KIND[kind])):
        if node["type"] != "array":
            continue
        if node["x-kubernetes-list-type"] == "map":
            (key,) = node["x-kubernetes-list-map-keys"]
            assert key in node["items"]["required"], path
            maps.append(path)
        else:
            assert node["x-kubernetes-list-type"] == "atomic", path
    expected = {"RoutingProxy": [".spec.upstream.channels"], "ModelCatalog": [".spec.models"]}.get(kind, [])
    assert maps == [*expected, ".status.conditions"]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_has_a_maximum_and_fields_say_what_they_are(kind: str) -> None:
    """Without a maximum a rule's cost counts as infinite; without a description `kubectl explain` is mute."""
    for path, node, _ in walk(schema(BY_KIND[kind])):
        if path in ("", ".apiVersion", ".kind", ".metadata"):
            continue
        match node["type"]:
            case "array":
                assert node["maxItems"] > 0, path
            case "string":
                assert "enum" in node or node["maxLength"] > 0, path
            case "integer" | "number":
                assert "maximum" in node, path
            case "object" if "additionalProperties" in node:
                assert node["maxProperties"] > 0, path
        if not path.endswith(("[]", "{}")):
            assert node.get("description"), path


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_explicit_but_never_inside_list_items(kind: str) -> None:
    """A default inside a list item is a difference that Argo CD shows for ever."""
    defaults = {path: node["default"] for path, node, _ in walk(schema(BY_KIND[kind])) if "default" in node}
    assert not [path for path, node, in_list in walk(schema(BY_KIND[kind])) if in_list and "default" in node]
    assert defaults.pop(".status")["conditions"][0]["status"] == "Unknown"
    if kind == "SpendBudget":
        assert defaults == {
            ".spec.timeZone": "UTC",
            ".spec.steps": [
                {"atPercent": 50, "action": "Notify"},
                {"atPercent": 80, "action": "StepDown", "maxTier": "MidRange"},
                {"atPercent": 95, "action": "StepDown", "maxTier": "UltraBudget"},
            ],
            ".spec.enforcement": "Hard",
            ".spec.protectCritical": True,
        } | dict.fromkeys((".status.routes.matched", ".status.routes.steppedDown"), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_valid_by_their_own_schema(kind: str) -> None:
    """An API server refuses a CRD whose default its own schema refuses."""
    for _, node, _ in walk(schema(BY_KIND[kind])):
        if "default" in node:
            Draft202012Validator(node).validate(node["default"])


@pytest.mark.parametrize("kind", KINDS)
def test_names_columns_and_status(kind: str) -> None:
    """`kubectl get mroute` and `kubectl get stepdown -A` are how people look at it."""
    spec = BY_KIND[kind]["spec"]
    short = {"ModelRoute": "mroute", "SpendBudget": "spend", "RoutingProxy": "rproxy", "ModelCatalog": "mcatalog"}[kind]
    assert (spec["group"], spec["names"]["shortNames"], spec["names"]["categories"]) == ("stepdown.dev", [short], ["stepdown"])
    assert spec["scope"] == ("Cluster" if kind == "ModelCatalog" else "Namespaced")
    (version,) = spec["versions"]
    assert (version["name"], version["subresources"]) == ("v1alpha1", {"status": {}})
    columns = version["additionalPrinterColumns"]
    assert columns[0]["name"] == "Ready"
    known = {path for path, _, _ in walk(schema(BY_KIND[kind]))}
    for column in columns:
        path = column["jsonPath"]
        assert path.startswith((".metadata.", ".status.conditions[?(@.type==")) or path in known, f"{path} is no field"


@pytest.mark.parametrize("document", SAMPLES, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_our_own_files_are_valid(document: Node) -> None:
    """The first thing a user does is `kubectl apply -k manifests/samples`."""
    assert parse(document).name == document["metadata"]["name"]
    Draft202012Validator(_closed(schema(BY_KIND[document["kind"]]))).validate(document)


def test_the_samples_are_the_routes_that_people_run_today() -> None:
    """Who moves to Stepdown must get the model and the parameters that they had."""
    routes = {document["metadata"]["name"]: document["spec"] for document in SAMPLES if document["kind"] == "ModelRoute"}
    assert routes["classify"]["models"] == {"default": "qwen3-8b"}
    assert routes["classify"]["parameters"] == {"temperature": 0.1, "maxTokens": 20, "timeout": "5s"}
    assert routes["analyze"]["models"] == {"default": "deepseek-v4-flash"}
    assert routes["analyze"]["parameters"] == {"temperature": 0.3, "maxTokens": 1000}
    assert routes["router"]["models"] == {
        "default": "deepseek-ai/DeepSeek-V4-Flash",
        "fallbacks": ["Qwen/Qwen3-32B"],
        "premium": "Pro/deepseek-ai/DeepSeek-R1",
    }


def test_samples_hold_no_secret_and_mark_their_example_price() -> None:
    """A made-up price that passes for a real one is a wrong bill; a key in Git is a leak."""
    text = (ROOT / "manifests" / "samples" / "example-prices.yaml").read_text()
    (document,) = (document for document in SAMPLES if document["metadata"]["name"] == "example-prices")
    assert text.startswith("# EXAMPLE PRICES, NOT REAL ONES")
    assert "EXAMPLE" in document["metadata"]["annotations"]["stepdown.dev/note"]
    assert not any("kind: Secret" in path.read_text() for path in (ROOT / "manifests" / "samples").glob("*.yaml"))


def test_samples_hold_every_kind() -> None:
    """Without an example of a kind nobody finds out how to write one."""
    assert {document["kind"] for document in SAMPLES} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_says_what_to_write_and_points_at_a_field(kind: str) -> None:
    """A rule whose field does not exist makes the API server refuse the CRD."""
    for path, node, _ in walk(schema(BY_KIND[kind])):
        for rule in node.get("x-kubernetes-validations", ()):
            assert 0 < len(rule["message"]) < 2048
            assert rule.get("fieldPath", "")[1:] in {"", *node.get("properties", {})}, path


def test_what_rules_refuse_is_well_formed_otherwise() -> None:
    """Else the table would prove that the schema refuses, not that the rule does."""
    for document, _, message in REFUSED:
        problems = list(Draft202012Validator(_closed(schema(BY_KIND[document["kind"]]))).iter_errors(document))
        assert problems == [], message


def _closed(node: Node) -> Node:
    """The schema as strict field validation reads it: no unknown fields."""
    closed = {key: value for key, value in node.items() if not key.startswith("x-kubernetes")}
    if "properties" in node:
        closed["properties"] = {name: _closed(each) for name, each in node["properties"].items()}
        closed["additionalProperties"] = False
    if "items" in node:
        closed["items"] = _closed(node["items"])
    return closed


def test_the_chart_installs_what_crds_holds_and_keeps_it_on_uninstall() -> None:
    """`helm uninstall` would otherwise delete the CRDs, and every route and budget of the cluster with them."""
    for name, text in crd.chart_files().items():
        assert (ROOT / "charts" / "stepdown" / "templates" / "crds" / name).read_text() == text
        first, *lines, last = text.splitlines()
        assert (first, last) == ("{{- if .Values.crds.install }}", "{{- end }}")
        document = yaml.safe_load("\n".join(lines))
        assert document["metadata"].pop("annotations")["helm.sh/resource-policy"] == "keep"
        assert document == CRDS[name]
