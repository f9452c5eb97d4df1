"""One route under one hard budget, as the plan would render it: what the bench's keeper publishes, and the spending tests."""

from typing import NamedTuple

from bench.bodies import ROUTE
from stepdown.budget.account import Binding
from stepdown.model.config import (
    Account,
    Budget,
    Channel,
    Fleet,
    Ladder,
    Model,
    Parameters,
    PriceFrom,
    Route,
    Shard,
    Tier,
    account_id,
    shard_of,
)
from stepdown.model.money import usd_per_mtok_to_pusd

NAMESPACE = "bench"
FLEET = f"{NAMESPACE}/{NAMESPACE}"
BUDGET = f"{NAMESPACE}/all"
_PERIOD_S = 30 * 86_400

MODELS: tuple[tuple[str, Tier, str, str], ...] = (
    ("deepseek-ai/DeepSeek-V4-Flash", "Budget", "0.18", "0.25"),
    ("Qwen3.5-4B", "UltraBudget", "0.05", "0.05"),
)
"""Best first: id, tier, USD per million tokens in and out."""


class Policy(NamedTuple):
    fleet: Fleet
    shard: Shard
    binding: Binding
    """Of the account in force; its limit holds for this period."""


def one_route(base_url: str, limit_nusd: int, now_s: float, *, key_sha256: str | None = None, budget: bool = True) -> Policy:
    """The route `bench` in the fleet's own namespace, on a ladder of two rungs; `budget`: whether it is under the one."""
    start_s = int(now_s) // 86_400 * 86_400
    periods = ((start_s, start_s + _PERIOD_S), (start_s + _PERIOD_S, start_s + 2 * _PERIOD_S))
    accounts = tuple(
        Account(id=account_id(BUDGET, begin), start_s=begin, end_s=end, limit_nusd=limit_nusd) for begin, end in periods
    )
    name = f"{NAMESPACE}/{ROUTE}"
    route = Route(
        name=name,
        ladders={"default": Ladder(rungs=tuple(each[0] for each in MODELS))},
        parameters=Parameters(max_tokens=1000, timeout_s=60.0),
        budgets=(BUDGET,) if budget else (),
        api_key_sha256=None if key_sha256 is None else (key_sha256,),
    )
    shard = Shard(
        index=shard_of(name),
        routes={name: route},
        models={each[0]: _model(*each) for each in MODELS},
        budgets={BUDGET: Budget(name=BUDGET, hard=True, accounts=accounts)},
    )
    fleet = Fleet(name=FLEET, namespace=NAMESPACE, base_url=base_url, channels=(Channel(name="standard"),))
    binding = Binding(
        budget=BUDGET, start_s=start_s, end_s=start_s + _PERIOD_S, limit_nusd=limit_nusd, hard=True, routes=frozenset({name})
    )
    return Policy(fleet, shard, binding)


def _model(name: str, tier: Tier, input_usd: str, output_usd: str) -> Model:
    input_pusd, output_pusd = usd_per_mtok_to_pusd(input_usd), usd_per_mtok_to_pusd(output_usd)
    price = PriceFrom(from_s=0, input_pusd=input_pusd, cached_input_pusd=input_pusd, output_pusd=output_pusd)
    return Model(name=name, upstream_id=name, tier=tier, channel="standard", prices=(price,), context_tokens=32_768)
