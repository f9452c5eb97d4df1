"""From documents to the World that the plan judges. `run` gathers one at every change, `validate`, `explain` and `status` once.

What is judged stays judged: an object whose document did not change is the same value in the next World, so that the plan can
reuse what it made of it. Two objects of one kind and name are both left out, and what was last accepted stays in force: nobody
can know which of them is meant.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stepdown.local.documents import Document, Loaded, Problem, line_of
from stepdown.local.secrets import BadSecret, ChannelKey, channel_keys, presence, read_secret
from stepdown.model.base import API_VERSION, GROUP
from stepdown.model.errors import InvalidObject, key_of, parse
from stepdown.model.resources import KINDS, AnyResource, ModelCatalog, ModelRoute, ProxyRef, RoutingProxy, SpendBudget
from stepdown.plan.world import AcceptedSpec, Invalid, World

DEFAULT_NAMESPACE = "default"
IMPLICIT = "default/default"
"""The fleet that is assumed where the folder has no RoutingProxy."""

Judged = AnyResource | Invalid


class NoSuchProxy(Exception):
    """Which fleet is meant cannot be told."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """A folder, understood."""

    world: World
    fleet: str
    """`namespace/name` of the RoutingProxy that is run."""
    implicit: bool
    """No RoutingProxy was found: the fleet is an assumption."""
    keys: tuple[ChannelKey, ...]
    problems: tuple[Problem, ...]
    """What a person must mend, in the order of the files."""
    notes: tuple[Problem, ...]
    """What was left out without harm."""
    places: Mapping[tuple[str, str], Document]
    """Where each object stands, by kind and key."""
    unreadable: frozenset[str]

    @property
    def objects(self) -> int:
        """How many are valid."""
        world = self.world
        return len(world.routes) + len(world.budgets) + len(world.catalogs) + len(world.proxies) - self.implicit


class Gatherer:
    """Keeps what it has judged between one gathering and the next."""

    def __init__(self, *, proxy: str = "", environment: Mapping[str, str] | None = None) -> None:
        self._proxy = proxy
        self._environment = dict(environment or {})
        self._judged: dict[str, tuple[Document, Judged | None, tuple[Problem, ...]]] = {}
        self._adopted: dict[int, tuple[ModelRoute, ModelRoute]] = {}
        self._generations: dict[str, tuple[int, Any]] = {}

    def remember(self, accepted: Mapping[str, AcceptedSpec]) -> None:
        """Generations go on counting where the ledger's last accepted ones ended."""
        for uid, each in accepted.items():
            kind = KINDS.get(uid.partition("/")[0])
            if kind is not None and uid not in self._generations:
                try:
                    spec: Any = kind.model_fields["spec"].annotation.model_validate(each.spec)  # type: ignore[union-attr]
                except ValueError:
                    spec = object()  # written by another version: whatever the file says now counts as a change
                self._generations[uid] = (each.generation, spec)

    def gather(self, loaded: Loaded, accepted: Mapping[str, AcceptedSpec] | None = None) -> Gathered:
        """`accepted`: what the ledger remembers, for objects whose file cannot be read. Raises NoSuchProxy."""
        judged, problems, notes, secrets, labels = self._judge_all(loaded)
        problems = [problem for problem in loaded.problems if not problem.note] + problems
        singles, doubles = _distinct(judged, problems)
        routes = [each for each in singles if isinstance(each, ModelRoute)]
        proxies = [each for each in singles if isinstance(each, RoutingProxy)]
        catalogs = [each for each in singles if isinstance(each, ModelCatalog)]
        places: dict[tuple[str, str], Document] = {(each.kind, each.key): document for document, each in judged}
        invalid = [each for each in singles if isinstance(each, Invalid)] + doubles
        invalid += _out_of_sight(loaded.unreadable, places, accepted or {})
        implicit = not proxies and not any(each.kind == "RoutingProxy" for each in invalid)
        if implicit:
            proxies = [implicit_proxy([each.name for each in catalogs])]
            routes = self._adopt(routes)
        fleet = self._choose([each.key for each in proxies] + [each.key for each in invalid if each.kind == "RoutingProxy"])
        chosen = next((each for each in proxies if each.key == fleet), None)
        keys = channel_keys(chosen, secrets, self._environment) if chosen else ()
        world = World(
            routes=tuple(routes),
            budgets=tuple(each for each in singles if isinstance(each, SpendBudget)),
            proxies=tuple(proxies),
            catalogs=tuple(catalogs),
            invalid=tuple(invalid),
            namespace_labels=labels,
            secrets={**dict.fromkeys(secrets, True), **(presence(keys, chosen) if chosen else {})},
            allowed_upstreams=("*",),
        )
        return Gathered(world, fleet, implicit, keys, tuple(problems), tuple(notes), places, loaded.unreadable)

    def _judge_all(
        self, loaded: Loaded
    ) -> tuple[
        list[tuple[Document, Judged]], list[Problem], list[Problem], dict[str, dict[str, str]], dict[str, dict[str, str]]
    ]:
        judged: list[tuple[Document, Judged]] = []
        problems: list[Problem] = []
        notes: list[Problem] = []
        secrets: dict[str, dict[str, str]] = {}
        labels: dict[str, dict[str, str]] = {}
        kept: dict[str, tuple[Document, Judged | None, tuple[Problem, ...]]] = {}
        for document in loaded.documents:
            uid = f"{document.body.get('kind')}/{key_of(document.body)}"
            entry = self._judged.get(uid)
            if entry is None or not _same(entry[0], document, entry[2]):
                if self._foreign(document, problems, notes, secrets, labels):
                    continue
                entry = (document, *self._judge(document, uid))
            kept[uid] = entry
            if entry[1] is not None:
                judged.append((document, entry[1]))
            problems += entry[2]
        self._judged = kept
        return judged, problems, notes, secrets, labels

    def _judge(self, document: Document, uid: str) -> tuple[Judged | None, tuple[Problem, ...]]:
        """One of our objects, or what is wrong with it; None: not even its kind is known."""
        body = document.body
        generation, before = self._generations.get(uid, (1, None))
        try:
            resource = parse(_local(body, generation), namespace=DEFAULT_NAMESPACE)
        except InvalidObject as error:
            problems = tuple(
                Problem(document.file, document.number, line_of(document, each.path), str(each)) for each in error.problems
            )
            return _invalid(body, "; ".join(f"{each.field} {each.message}".strip() for each in error.problems)), problems
        if before is not None and before != resource.spec:
            generation += 1
            metadata = resource.metadata.model_copy(update={"generation": generation})
            resource = resource.model_copy(update={"metadata": metadata})
        self._generations[uid] = (generation, resource.spec)
        return resource, ()

    def _foreign(
        self,
        document: Document,
        problems: list[Problem],
        notes: list[Problem],
        secrets: dict[str, dict[str, str]],
        labels: dict[str, dict[str, str]],
    ) -> bool:
        """Takes what is not ours: Secrets and Namespaces for what they say, everything else with a note. False: it is ours."""
        body = document.body
        version, kind = body.get("apiVersion"), body.get("kind")
        group = version.partition("/")[0] if isinstance(version, str) else None
        if group == GROUP or (group is None and kind in KINDS):
            return False
        about = f"{kind} {key_of(body)}"
        if version == "v1" and kind == "Secret":
            try:
                secrets[key_of(body)] = read_secret(body)
            except BadSecret as error:
                problems.append(Problem(document.file, document.number, document.line, f"{about}: {error}"))
        elif version == "v1" and kind == "Namespace":
            metadata = body.get("metadata")
            found = metadata.get("labels") if isinstance(metadata, dict) else None
            labels[key_of(body).partition("/")[2]] = dict(found) if isinstance(found, dict) else {}
        elif document.file.endswith(("kustomization.yaml", "kustomization.yml")):
            pass
        elif isinstance(kind, str) and isinstance(version, str):
            notes.append(Problem(document.file, document.number, document.line, f"{about}: not an object of {GROUP}: left out"))
        else:
            message = f"no object: it has no apiVersion and kind. Write apiVersion: {API_VERSION} and kind: {', '.join(KINDS)}"
            problems.append(Problem(document.file, document.number, document.line, message))
        return True

    def _adopt(self, routes: list[ModelRoute]) -> list[ModelRoute]:
        """Without a RoutingProxy, every route that names none belongs to the assumed one."""
        adopted: dict[int, tuple[ModelRoute, ModelRoute]] = {}
        for route in routes:
            entry = self._adopted.get(id(route))
            if entry is None:
                entry = (route, route)
                if "proxy_ref" not in route.spec.model_fields_set and route.namespace != DEFAULT_NAMESPACE:
                    ref = ProxyRef(name="default", namespace=DEFAULT_NAMESPACE)
                    entry = (route, route.model_copy(update={"spec": route.spec.model_copy(update={"proxy_ref": ref})}))
            adopted[id(route)] = entry
        self._adopted = adopted
        return [adopted[id(route)][1] for route in routes]

    def _choose(self, proxies: list[str]) -> str:
        if self._proxy:
            if self._proxy not in proxies:
                raise NoSuchProxy(f"--proxy {self._proxy}: the folder has {', '.join(sorted(proxies))}; name one of them")
            return self._proxy
        if len(proxies) > 1:
            raise NoSuchProxy(
                f"the folder has {len(proxies)} RoutingProxies: choose one with --proxy: {', '.join(sorted(proxies))}"
            )
        return proxies[0]


def _out_of_sight(
    unreadable: frozenset[str], places: Mapping[tuple[str, str], Document], accepted: Mapping[str, AcceptedSpec]
) -> list[Invalid]:
    """What was accepted once and may stand in a file that cannot be read: budgets must go on binding, prices and keys holding.

    Routes are not among them: without its labels a route could escape its budget, so it is unknown until its file is mended.
    """
    if not unreadable:
        return []
    message = f"it is in no file that can be read; it may be in {', '.join(sorted(unreadable))}: mend that first"
    found = []
    for each in accepted.values():
        kind, _, key = each.uid.partition("/")
        if kind in ("SpendBudget", "RoutingProxy", "ModelCatalog") and (kind, key) not in places:
            namespace, _, name = key.rpartition("/")
            body = {"kind": kind, "metadata": {"namespace": namespace, "name": name}, "spec": each.spec}
            invalid = _invalid(body, message)
            assert invalid is not None
            found.append(replace(invalid, generation=each.generation))
    return found


def any_valid(loaded: Loaded) -> bool:
    """Whether a folder has one valid object: then a start is worth a ledger. Looks no further than that object."""
    for document in loaded.documents:
        try:
            parse(document.body, namespace=DEFAULT_NAMESPACE)
        except InvalidObject:
            continue
        return True
    return False


def implicit_proxy(catalogs: list[str]) -> RoutingProxy:
    """The fleet where the folder has none: the default upstream, both of its channels, every namespace and every catalog."""
    return RoutingProxy.model_validate(
        {
            "metadata": {"namespace": DEFAULT_NAMESPACE, "name": "default", "generation": 1},
            "spec": {
                "upstream": {
                    "channels": [
                        {"name": "standard", "apiKeySecretRef": {"name": "upstream"}},
                        {"name": "pro", "modelPrefix": "Pro/", "apiKeySecretRef": {"name": "upstream-pro"}},
                    ]
                },
                "catalogRefs": [{"name": name} for name in catalogs],
                "allowedRoutes": {"namespaces": {"from": "All"}},
            },
        }
    )


def _same(known: Document, document: Document, problems: tuple[Problem, ...]) -> bool:
    """Whether what was judged still holds: the same document, or the same object in a file that changed around it."""
    return known is document or (not problems and known.body == document.body)


def _local(body: Mapping[str, Any], generation: int) -> Mapping[str, Any]:
    """The object without what a cluster gave it: here an object is known by its name, and its generation is counted here."""
    metadata = body.get("metadata")
    if not isinstance(metadata, dict):
        return body
    return {**body, "metadata": {**metadata, "uid": "", "generation": generation}}


def _invalid(body: Mapping[str, Any], message: str) -> Invalid | None:
    kind = body.get("kind")
    if kind not in KINDS:
        return None
    namespace, _, name = key_of(body).rpartition("/")
    metadata = body.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    labels = labels if isinstance(labels, dict) else {}
    return Invalid(kind=kind, namespace=namespace, name=name, message=message, raw=body, labels=labels)


def _distinct(judged: list[tuple[Document, Judged]], problems: list[Problem]) -> tuple[list[Judged], list[Invalid]]:
    """Objects that are there once, and for each name that is there twice one Invalid that says where."""
    seen: dict[tuple[str, str], list[tuple[Document, Judged]]] = {}
    for document, each in judged:
        seen.setdefault((each.kind, each.key), []).append((document, each))
    singles = [entries[0][1] for entries in seen.values() if len(entries) == 1]
    doubles = []
    for (kind, key), entries in seen.items():
        if len(entries) > 1:
            message = f"is there {len(entries)} times: {', '.join(document.place for document, _ in entries)}; keep one of them"
            double = _invalid(entries[0][0].body, message)
            assert double is not None
            doubles.append(replace(double, conflict=True))
            last = entries[-1][0]
            problems.append(Problem(last.file, last.number, last.line, f"{kind} {key}: {message}"))
    return singles, doubles
