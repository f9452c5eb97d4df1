"""The fleet's config compiled for the hot path: one dict lookup finds a route with all that admission and forwarding need.

`model.config` is what travels; this is what a request touches: names resolved, every class present, prices ready. A table is
immutable; `Table.replace` re-compiles the shards that changed and marks the old ones `retired`, so that a request which still
holds an old route is admitted by the new one. `exchange` finds routes here, the till reads budgets and prices, the syncer
swaps tables.
"""

from collections.abc import Iterator, Mapping
from typing import get_args

from stepdown.model.config import CLASSES, Account, Budget, Fleet, Ladder, Model, RequestClass, Route, Shard, Tier, digest

Prices = tuple[int, int, int]
"""Input, cached input, output: pUSD a token."""

_CLASSES: dict[str, RequestClass] = {name: name for name in get_args(RequestClass)}


class TableError(Exception):
    """What a table cannot answer or be made of."""


class UnknownRoute(TableError):
    """No route of that name in this fleet."""


class UnknownClass(TableError):
    """Not one of the request classes."""


class BadConfig(TableError):
    """A shard that names what it does not carry: refused as a whole, the last good one stays in force."""


class RungEntry:
    """One model as a rung: what it is called, what it may cost at most."""

    __slots__ = (
        "bound",
        "channel",
        "context_tokens",
        "flat",
        "max_output_tokens",
        "model",
        "name",
        "overrun_nusd",
        "reasoning_tokens",
        "tier",
        "upstream_id",
        "worst_input_pusd",
    )

    def __init__(self, model: Model) -> None:
        self.model = model
        self.name = model.name
        self.tier: Tier = model.tier
        self.upstream_id = model.upstream_id
        self.channel = model.channel
        self.bound = model.output_bound
        self.context_tokens = model.context_tokens
        self.max_output_tokens = model.max_output_tokens
        self.reasoning_tokens = model.reasoning_tokens if model.output_bound == "MaxTokensPlusReasoning" else 0
        self.overrun_nusd = model.overrun_nusd
        """The one thing here that grows: this proxy may have seen more than the config knows yet (`Table.expect`)."""
        self.flat: Prices | None = None
        """The prices, where one entry holds for ever: the usual case, and no search."""
        self.worst_input_pusd = 0
        if len(model.prices) == 1 and model.prices[0].from_s <= 0:
            only = model.prices[0]
            self.flat = (only.input_pusd, only.cached_input_pusd, only.output_pusd)
            self.worst_input_pusd = max(only.input_pusd, only.cached_input_pusd)

    def prices_at(self, now_s: float, until_s: float) -> Prices | None:
        """The dearest price in force at any moment from `now_s` to `until_s`, each component by itself.

        None: Unpriced, or without a price for a part of that time.
        """
        if self.flat is not None:
            return self.flat
        found: Prices | None = None
        entries = self.model.prices
        for index, entry in enumerate(entries):
            ends_s = entries[index + 1].from_s if index + 1 < len(entries) else None
            if entry.from_s > until_s or (ends_s is not None and ends_s <= now_s):
                continue
            if found is None:
                if entry.from_s > now_s:
                    return None
                found = (entry.input_pusd, entry.cached_input_pusd, entry.output_pusd)
            else:
                found = (
                    max(found[0], entry.input_pusd),
                    max(found[1], entry.cached_input_pusd),
                    max(found[2], entry.output_pusd),
                )
        return found


class LadderEntry:
    """What one class of a route may be served by, best first."""

    __slots__ = ("fallbacks", "hidden", "hidden_by", "in_force", "rungs", "visible")

    def __init__(self, ladder: Ladder, rungs: Mapping[str, RungEntry]) -> None:
        self.rungs = tuple(rungs[name] for name in ladder.rungs)
        self.in_force = min(ladder.in_force, len(self.rungs) - 1)
        self.hidden_by = ladder.hidden_by
        self.hidden = self.rungs[: self.in_force]
        self.visible = self.rungs[self.in_force :]
        self.fallbacks = tuple(rungs[name] for name in ladder.fallbacks)


class BudgetEntry:
    """One budget as the till asks for it: which account at which moment."""

    __slots__ = ("accounts", "hard", "name")

    def __init__(self, name: str, budget: Budget | None) -> None:
        """A budget that the shard does not carry is Hard and has no account: its routes are refused, not served unbounded."""
        self.name = name
        self.hard = budget.hard if budget is not None else True
        self.accounts: tuple[Account, ...] = budget.accounts if budget is not None else ()

    def account_at(self, now_s: float) -> Account | None:
        for account in self.accounts:
            if account.start_s <= now_s < account.end_s:
                return account
        return None


class ShardEntry:
    """One compiled shard: its digest, its routes, and whether a newer one has taken its place."""

    __slots__ = ("budgets", "digest", "index", "retired", "routes", "rungs")

    def __init__(self, shard: Shard) -> None:
        self.index = shard.index
        self.digest = digest(shard)
        self.retired = False
        rungs = {name: RungEntry(model) for name, model in shard.models.items()}
        budgets = {name: BudgetEntry(name, budget) for name, budget in shard.budgets.items()}
        self.budgets = tuple(budgets.values())
        self.rungs = tuple(rungs.values())
        self.routes: dict[str, RouteEntry] = {}
        for name, route in shard.routes.items():
            try:
                self.routes[name] = RouteEntry(route, self, rungs, budgets)
            except KeyError as missing:
                raise BadConfig(
                    f"shard {shard.index}: route {name!r} names {missing}, which the shard does not carry;"
                    f" it was rendered wrongly, the shard in force before stays in force"
                ) from None


class RouteEntry:
    """One route with everything resolved."""

    __slots__ = (
        "accounts",
        "budgets",
        "config",
        "digest",
        "hard",
        "home",
        "key_hashes",
        "ladders",
        "max_tokens",
        "name",
        "shard",
        "share",
        "temperature",
        "timeout_s",
    )

    def __init__(
        self, route: Route, home: ShardEntry, rungs: Mapping[str, RungEntry], budgets: Mapping[str, BudgetEntry]
    ) -> None:
        self.config = route
        self.name = route.name
        self.home = home
        self.shard = home.index
        self.digest = home.digest
        default = LadderEntry(route.ladders["default"], rungs)
        self.ladders: dict[RequestClass, LadderEntry] = {
            name: LadderEntry(route.ladders[name], rungs) if name in route.ladders and name != "default" else default
            for name in CLASSES
        }
        self.budgets = tuple(budgets.get(name) or BudgetEntry(name, None) for name in route.budgets)
        self.hard = any(budget.hard for budget in self.budgets)
        self.share = route.premium_max_share_percent if self.ladders["critical"] is not default else None
        """Percent of requests that may have premium; None: no limit, or no premium."""
        hashes = route.api_key_sha256
        self.key_hashes = None if hashes is None else frozenset(bytes.fromhex(each) for each in hashes)
        self.accounts = frozenset(route.service_accounts)
        self.timeout_s = route.parameters.timeout_s
        self.max_tokens = route.parameters.max_tokens
        self.temperature = route.parameters.temperature

    def rung(self, name: str) -> RungEntry | None:
        """The rung of that model in any of the route's ladders."""
        for ladder in self.ladders.values():
            for rung in (*ladder.rungs, *ladder.fallbacks):
                if rung.name == name:
                    return rung
        return None


class Table:
    """All routes of a fleet. Immutable: a change makes a new one."""

    __slots__ = ("_by_field", "fleet", "fleet_digest", "shards")

    def __init__(self, fleet: Fleet, shards: Mapping[int, Shard], *, keeps: "Table | None" = None) -> None:
        """`keeps`: the table in force before, whose other shards stay."""
        kept = keeps.shards if keeps is not None else {}
        self.fleet = fleet
        self.fleet_digest: str = digest(fleet) if keeps is None or fleet is not keeps.fleet else keeps.fleet_digest
        self.shards: dict[int, ShardEntry] = dict(kept)
        for index, shard in shards.items():
            self.shards[index] = ShardEntry(shard)
        self._by_field: dict[str, RouteEntry] = {}
        own = fleet.namespace + "/"
        for entry in self.shards.values():
            self._by_field.update(entry.routes)
            for name, route in entry.routes.items():
                if name.startswith(own):
                    self._by_field[name[len(own) :]] = route

    def replace(self, fleet: Fleet | None, shards: Mapping[int, Shard]) -> "Table":
        """A table with these shards in place of those of the same index. Raises BadConfig and changes nothing."""
        table = Table(fleet if fleet is not None else self.fleet, shards, keeps=self)
        for index in shards:
            if index in self.shards:
                self.shards[index].retired = True
        return table

    def expect(self, model: str, overrun_nusd: int) -> bool:
        """From here on that much more is reserved for the model. False: the config said so already, wherever it is named."""
        news = False
        for shard in self.shards.values():
            for rung in shard.rungs:
                if rung.name == model and rung.overrun_nusd < overrun_nusd:
                    rung.overrun_nusd = overrun_nusd
                    news = True
        return news

    @property
    def routes(self) -> Iterator[RouteEntry]:
        """Every route, by shard and name."""
        for index in sorted(self.shards):
            entries = self.shards[index].routes
            yield from (entries[name] for name in sorted(entries))

    def route(self, name: str) -> RouteEntry | None:
        """The route of that full name (`namespace/name`)."""
        return self._by_field.get(name)

    def find(self, model_field: str, header_class: str | None) -> tuple[RouteEntry, RequestClass]:
        """The route and class that a request's `model` names; a class in it wins over the header's."""
        route = self._by_field.get(model_field)
        if route is not None and header_class is None:
            return route, "default"
        name, colon, suffix = model_field.partition(":")
        wanted = suffix if colon else header_class or "default"
        request_class = _CLASSES.get(wanted)
        if request_class is None:
            where = f"model {model_field!r}" if colon else "header x-stepdown-class"
            raise UnknownClass(f"{where} asks for class {wanted!r}; the classes are {', '.join(CLASSES)}")
        route = self._by_field.get(name)
        if route is None:
            raise UnknownRoute(
                f"no route {name!r} in fleet {self.fleet.name}: write NAME for a route of namespace {self.fleet.namespace},"
                f" NAMESPACE/NAME for any other; GET /v1/models lists those that you may call"
            )
        return route, request_class
