"""What `stepdown run` prints when it starts: where it serves, by what, how to call it, and what to know. `run` calls this."""

import ipaddress
import json
import sys
from collections.abc import Sequence

from stepdown import __version__
from stepdown.local.engine import Judged
from stepdown.model.money import nusd_to_usd
from stepdown.sync import log

NO_WITNESS = "none in local mode: whoever puts back an old copy of the ledger file gets back what was spent since"


def ready(host: str, port: int, ledger: str, upstream: str, judged: Judged) -> None:
    """The block for people on stdout, the line for machines in the log, and the warnings."""
    gathered, config = judged.gathered, judged.config
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}/v1"
    to = upstream or config.fleet.base_url
    names = sorted(name.removeprefix(f"{config.fleet.namespace}/") for name in config.placed)
    lines = [
        f"stepdown {__version__}",
        f"  serving   {url}  →  {to}",
        f"  fleet     {gathered.fleet}" + (" (assumed: the folder has no RoutingProxy)" if gathered.implicit else ""),
        f"  routes    {_some(names)}",
        *(f"  {'budgets' if not index else '       '}   {text}" for index, text in enumerate(_budgets(judged))),
        *(f"  {'keys' if not index else '    '}      {key.channel}: {key.source}" for index, key in enumerate(gathered.keys)),
        f"  ledger    {ledger}",
        f"  witness   {NO_WITNESS}",
        "",
        *_curl(url, names[0] if names else "ROUTE"),
    ]
    print("\n".join(lines), file=sys.stdout, flush=True)
    log.info(
        f"ready: {len(names)} route{'' if len(names) == 1 else 's'} at {url}",
        event="ready",
        url=url,
        upstream=to,
        routes=len(names),
        ledger=ledger,
        witness="none",
    )
    _warn(host, judged)


def nothing_valid(roots: Sequence[str], problems: Sequence[str]) -> str:
    """What to say where a folder has nothing that could be used."""
    where = ", ".join(roots)
    if not problems:
        return f"{where} has no object of stepdown.dev in any .yaml, .yml or .json file; see manifests/samples for working ones"
    return f"nothing in {where} is valid:\n" + "\n".join(f"  {problem}" for problem in problems)


def _budgets(judged: Judged) -> list[str]:
    plans = judged.made.plan.budgets.values()
    shown = []
    for plan in sorted(plans, key=lambda each: each.key)[:10]:
        spent = f", ${nusd_to_usd(plan.balance.spent_nusd, digits=6)} spent" if plan.balance is not None else ""
        shown.append(f"{plan.key}: ${nusd_to_usd(plan.limit_nusd)} a month{spent}" if plan.terms else f"{plan.key}: not valid")
    if len(judged.made.plan.budgets) > 10:
        shown.append(f"and {len(judged.made.plan.budgets) - 10} more")
    return shown or ["none: nothing is stepped down or refused for money"]


def _curl(url: str, route: str) -> list[str]:
    body = json.dumps({"model": route, "messages": [{"role": "user", "content": "Hello"}]})
    return [f"  curl -i {url}/chat/completions -H 'content-type: application/json' \\", f"    -d '{body}'", ""]


def _warn(host: str, judged: Judged) -> None:
    if _is_loopback(host):
        return
    for name, placed in sorted(judged.config.placed.items()):
        if placed.route.api_key_sha256 is None:
            log.warning(
                f"ModelRoute {name} names no callers, and {host} is not a loopback address: whoever reaches it can spend its"
                f" budget. Add spec.callers (`stepdown key new` makes a key), or listen on 127.0.0.1",
                event="open_route",
                object=f"ModelRoute {name}",
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"
