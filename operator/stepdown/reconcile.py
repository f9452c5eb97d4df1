"""One pass, each step by its name: READ THIS FIRST.

    World, LedgerView ── plan ──▶ Plan ── render ──▶ configs ── status ──▶ documents, Events
                        └────────── decide ─────────┘ └───────── tell ─────────┘

A shell (`local` or `watch`) gathers the World and what the ledger knows, calls `reconcile`, and does what the Pass says: keeps
the accepted specs, binds the accounts in the ledger, publishes the configs, shows the statuses, writes the Events; and calls
again when anything changes, at `next_change_s` at the latest. One with thousands of routes calls the halves, and publishes what
is decided before it makes the words for it. Nothing here reads a clock, a file or a socket.

What did not change is not made again: give the previous Pass, and a change of one route among 10,000 costs milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from stepdown.budget.account import Binding
from stepdown.model.config import Fleet, Shard
from stepdown.plan.plan import EMPTY, Plan, make_plan
from stepdown.plan.world import AcceptedSpec, LedgerView, ObjectKey, World
from stepdown.render.config import FleetConfig, render
from stepdown.status.documents import Document
from stepdown.status.events import Event, make_events
from stepdown.status.statuses import NONE, Statuses, make_statuses


@dataclass(frozen=True, slots=True)
class Decided:
    """What is to be in force."""

    plan: Plan
    configs: Mapping[str, FleetConfig]
    """By RoutingProxy (`namespace/name`): what its proxies get."""

    @property
    def bindings(self) -> list[Binding]:
        """For `Ledger.bind`: the accounts of this period and the next."""
        return self.plan.bindings

    @property
    def accept(self) -> tuple[tuple[str, AcceptedSpec], ...]:
        """For `Ledger.accept`, by UID: specs in force that the ledger does not keep yet."""
        return self.plan.accept


@dataclass(frozen=True, slots=True)
class Pass(Decided):
    """All that one pass says."""

    made: Statuses
    events: tuple[Event, ...]
    next_change_s: int | None
    """When a pass gives something else by time alone; None: never."""

    @property
    def statuses(self) -> Mapping[ObjectKey, Document]:
        """By kind and `namespace/name`."""
        return self.made.documents

    @property
    def fleet(self) -> Fleet:
        """The config of the only fleet (`stepdown run` has one); for several, see `configs`."""
        (config,) = self.configs.values()
        return config.fleet

    @property
    def shards(self) -> Mapping[int, Shard]:
        """The 16 shards of the only fleet."""
        (config,) = self.configs.values()
        return config.shards


def reconcile(world: World, ledger: LedgerView, now_s: float, previous: Pass | None = None) -> Pass:
    """One pass over everything. Pure: the same input gives an equal Pass."""
    return tell(decide(world, ledger, now_s, previous), ledger, now_s, previous)


def decide(world: World, ledger: LedgerView, now_s: float, previous: Decided | None = None) -> Decided:
    """The first half, which proxies wait for. Of the ledger it needs no routes' traffic."""
    plan = make_plan(world, ledger, now_s, previous.plan if previous is not None else EMPTY)
    return Decided(plan, render(plan, previous.configs if previous is not None else {}))


def tell(decided: Decided, ledger: LedgerView, now_s: float, previous: Pass | None = None) -> Pass:
    """The second half, for people."""
    plan, configs = decided.plan, decided.configs
    statuses = make_statuses(plan, configs, ledger, now_s, previous.made if previous is not None else NONE)
    return Pass(plan, configs, statuses, make_events(plan, statuses), plan.next_change_s(now_s))
