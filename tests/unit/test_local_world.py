"""From documents to the World. If these fail, an object is judged as what it is not, or a change is not seen as one."""

import base64
from pathlib import Path

import pytest

from stepdown.local.documents import Folder
from stepdown.local.secrets import BadSecret, read_secret
from stepdown.local.world import Gathered, Gatherer, NoSuchProxy
from stepdown.plan.world import AcceptedSpec

LATER_NS = 4_000_000_000_000_000_000
HEAD = "apiVersion: stepdown.dev/v1alpha1\n"


def route(name: str, namespace: str = "", model: str = "qwen3-8b", more: str = "") -> str:
    where = f", namespace: {namespace}" if namespace else ""
    return f"---\n{HEAD}kind: ModelRoute\nmetadata: {{name: {name}{where}}}\nspec: {{models: {{default: {model}}}{more}}}\n"


def proxy(name: str, namespace: str = "default") -> str:
    channels = "[{name: standard, apiKeySecretRef: {name: keys}}, {name: pro, modelPrefix: Pro/, apiKeySecretRef: {name: pro}}]"
    meta = f"{{name: {name}, namespace: {namespace}}}"
    return f"---\n{HEAD}kind: RoutingProxy\nmetadata: {meta}\nspec: {{upstream: {{channels: {channels}}}}}\n"


class Place:
    """A folder and what gathers it."""

    def __init__(self, path: Path, **options: str) -> None:
        self.path = path
        self.folder = Folder([str(path)])
        environment = {name: value for name, value in options.items() if name.startswith("UPSTREAM")}
        self.gatherer = Gatherer(proxy=options.get("proxy", ""), environment=environment)

    def gather(self, text: str | None = None) -> Gathered:
        if text is not None:
            (self.path / "all.yaml").write_text(text)
        return self.gatherer.gather(self.folder.load(LATER_NS))


def test_a_folder_without_a_fleet_gets_one_that_serves_every_route(tmp_path: Path) -> None:
    """Two documents, a route and a budget, must be enough to try a policy."""
    gathered = Place(tmp_path).gather(route("a") + route("b", "shop") + route("c", "shop", more=", proxyRef: {name: other}"))
    assert gathered.implicit and gathered.fleet == "default/default" and not gathered.problems
    assert [each.proxy_key for each in gathered.world.routes] == ["default/default", "default/default", "shop/other"]
    assert gathered.objects == 3


def test_with_several_fleets_one_must_be_chosen(tmp_path: Path) -> None:
    """Running any of them would send a team's requests with another team's key."""
    with pytest.raises(NoSuchProxy, match="choose one with --proxy: a/default, b/default"):
        Place(tmp_path).gather(proxy("default", "a") + proxy("default", "b"))
    assert Place(tmp_path, proxy="b/default").gather().fleet == "b/default"
    with pytest.raises(NoSuchProxy, match="name one of them"):
        Place(tmp_path, proxy="c/default").gather()


def test_two_objects_of_one_name_name_both_places_and_neither_is_used(tmp_path: Path) -> None:
    """Which of two budgets is meant cannot be known; the last one accepted must stay, not the one read last."""
    gathered = Place(tmp_path).gather(route("a") + route("a", "default", "qwen3-14b") + route("b"))
    assert [each.name for each in gathered.world.routes] == ["b"]
    (invalid,) = gathered.world.invalid
    assert (invalid.kind, invalid.key) == ("ModelRoute", "default/a")
    (problem,) = gathered.problems
    assert f"{tmp_path}/all.yaml:2, {tmp_path}/all.yaml:7; keep one" in str(problem)


def test_a_wrong_object_is_named_with_the_line_of_its_field(tmp_path: Path) -> None:
    """Object, field, value, what to write, and where: all that a person needs to mend it."""
    text = route("good") + f"---\n{HEAD}kind: SpendBudget\nmetadata: {{name: team}}\nspec:\n  monthlyLimitUSD: 5\n  nope: 1\n"
    gathered = Place(tmp_path).gather(text)
    lines = [str(problem) for problem in gathered.problems]
    assert any(line.startswith(f"{tmp_path}/all.yaml:11 (document 2)") and "monthlyLimitUSD is 5" in line for line in lines), (
        lines
    )
    assert any(":12 (document 2)" in line and "nope" in line for line in lines), lines
    (invalid,) = gathered.world.invalid
    assert invalid.kind == "SpendBudget" and invalid.raw["spec"]["monthlyLimitUSD"] == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{HEAD}kind: ModelRuote\nmetadata: {{name: x}}\n", "did you mean 'ModelRoute'"),
        ("apiVersion: stepdown.dev/v2\nkind: ModelRoute\nmetadata: {name: x}\n", "write stepdown.dev/v1alpha1"),
        ("kind: ModelRoute\nmetadata: {name: x}\n", "apiVersion"),
        ("replicas: 3\n", "it has no apiVersion and kind"),
    ],
)
def test_what_cannot_be_told_is_a_problem(tmp_path: Path, text: str, says: str) -> None:
    """A misspelt kind would otherwise be a route that never exists."""
    gathered = Place(tmp_path).gather(text)
    assert says in " ".join(map(str, gathered.problems))


def test_other_kinds_are_left_out_with_a_note(tmp_path: Path) -> None:
    """A folder that Argo CD applies has Deployments beside its routes, and a kustomization without a kind."""
    (tmp_path / "kustomization.yaml").write_text("resources: [all.yaml]\n")
    gathered = Place(tmp_path).gather(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n"
        "---\napiVersion: networking.serving.volcano.sh/v1alpha1\nkind: ModelRoute\nmetadata: {name: other}\n" + route("a")
    )
    assert not gathered.problems
    assert [str(note).partition(": ")[2] for note in gathered.notes] == [
        "Deployment default/web: not an object of stepdown.dev: left out",
        "ModelRoute default/other: not an object of stepdown.dev: left out",
    ]
    assert [each.name for each in gathered.world.routes] == ["a"]


def test_keys_come_from_secrets_and_the_environment_wins(tmp_path: Path) -> None:
    """The wrong key sends one team's traffic on another's bill; a missing one must say what to do."""
    data = base64.b64encode(b"from-data").decode()
    secret = f"---\napiVersion: v1\nkind: Secret\nmetadata: {{name: keys}}\ndata: {{apiKey: {data}}}\n"
    gathered = Place(tmp_path).gather(proxy("default") + secret)
    assert [(key.channel, key.value) for key in gathered.keys] == [("standard", "from-data"), ("pro", "")]
    assert "export UPSTREAM_API_KEY_PRO, or add Secret default/pro with the key apiKey" in gathered.keys[1].source
    assert gathered.world.secrets == {"default/keys": True, "default/pro": False}
    gathered = Place(tmp_path, UPSTREAM_API_KEY="from-env", UPSTREAM_API_KEY_PRO="pro").gather()
    assert [key.value for key in gathered.keys] == ["from-env", "pro"]
    assert gathered.world.secrets == {"default/keys": True, "default/pro": True}


def test_a_secret_that_cannot_be_read_is_named_without_its_value(tmp_path: Path) -> None:
    """A log line must never have a key in it, not even a broken one."""
    gathered = Place(tmp_path).gather("apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\ndata: {apiKey: sk-plain-text!}\n")
    (problem,) = gathered.problems
    assert "Secret default/keys: data.apiKey is not base64" in str(problem) and "sk-plain" not in str(problem)
    assert read_secret({"data": {"a": "eA=="}, "stringData": {"a": "y", "b": "z"}}) == {"a": "y", "b": "z"}
    with pytest.raises(BadSecret, match="put it in quotes"):
        read_secret({"stringData": {"a": 5}})


def test_labels_of_namespaces_are_kept(tmp_path: Path) -> None:
    """A budget over namespaces finds its routes by them."""
    text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: web}}\n"
    assert Place(tmp_path).gather(text).world.labels_of("shop") == {"kubernetes.io/metadata.name": "shop", "team": "web"}


def test_an_unchanged_object_is_the_same_value_in_the_next_world(tmp_path: Path) -> None:
    """With 10,000 routes, planning all of them again for one change takes longer than the second that a change may take."""
    place = Place(tmp_path)
    first = place.gather(route("a") + route("b")).world
    second = place.gather(route("a") + route("b", model="qwen3-14b") + route("c")).world
    assert second.routes[0] is first.routes[0]
    assert [each.metadata.generation for each in second.routes] == [1, 2, 1]
    third = place.gather(route("a") + "# a comment\n" + route("b", model="qwen3-14b")).world
    assert third.routes[1] is second.routes[1]


def test_generations_go_on_from_the_ledger(tmp_path: Path) -> None:
    """After a restart, `observedGeneration` must not fall behind what was accepted before."""
    spec = '{"models": {"default": "qwen3-8b"}}'
    place = Place(tmp_path)
    place.gatherer.remember(
        {f"ModelRoute/default/{name}": AcceptedSpec(f"ModelRoute/default/{name}", 7, spec) for name in "ab"}
    )
    world = place.gather(route("a") + route("b", model="qwen3-14b")).world
    assert [each.metadata.generation for each in world.routes] == [7, 8]


def test_what_a_cluster_gave_an_exported_object_is_not_used(tmp_path: Path) -> None:
    """`kubectl get -o yaml` exports UIDs: an object must not become another one when somebody cleans the file up."""
    text = route("a").replace("name: a", "name: a, uid: abc, generation: 9") + "status: {}\n"
    (found,) = Place(tmp_path).gather(text).world.routes
    assert (found.metadata.uid, found.metadata.generation) == ("", 1)


def test_a_budget_whose_file_was_never_readable_is_remembered(tmp_path: Path) -> None:
    """A restart beside a broken file must not lift the ceiling, nor send requests past the fleet that was set up."""
    accepted = {
        uid: AcceptedSpec(uid, 3, spec)
        for uid, spec in {
            "SpendBudget/default/team": '{"monthlyLimitUSD": "5.00"}',
            "RoutingProxy/shop/default": "{}",
            "ModelRoute/default/gone": "{}",
        }.items()
    }
    place = Place(tmp_path)
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "all.yaml").write_text(route("a"))
    gathered = place.gatherer.gather(place.folder.load(LATER_NS), accepted)
    assert {(each.kind, each.key, each.generation) for each in gathered.world.invalid} == {
        ("SpendBudget", "default/team", 3),
        ("RoutingProxy", "shop/default", 3),
    }
    assert gathered.fleet == "shop/default" and not gathered.implicit
    (tmp_path / "bad.yaml").write_text("")
    gathered = place.gatherer.gather(place.folder.load(LATER_NS), accepted)
    assert not gathered.world.invalid and gathered.implicit
