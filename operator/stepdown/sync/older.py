"""What a proxy of the release before is sent: config without what its protocol does not know. `sync.service` calls this.

It would pass over what it does not know, and then have a digest of its own for what is left: it would be sent the same shard
every second, and no budget in it would ever be enforced. What is left out must leave less allowed, never more: a route whose
callers are ServiceAccounts is nobody's to an older proxy.
"""

import msgspec

from stepdown.model.config import Fleet, Shard


def fleet_of_protocol_1(fleet: Fleet) -> Fleet:
    """The same object where nothing is left out."""
    return fleet if fleet.issuer is None else msgspec.structs.replace(fleet, issuer=None)


def shard_of_protocol_1(shard: Shard) -> Shard:
    """The same object where nothing is left out.

    What an upstream was seen to take beyond its bounds is not reserved by an older proxy, with this shard or any other.
    """
    routes, models = shard.routes, shard.models
    if any(route.service_accounts for route in routes.values()):
        routes = {name: msgspec.structs.replace(route, service_accounts=()) for name, route in routes.items()}
    if any(model.overrun_nusd for model in models.values()):
        models = {name: msgspec.structs.replace(model, overrun_nusd=0) for name, model in models.items()}
    if routes is shard.routes and models is shard.models:
        return shard
    return msgspec.structs.replace(shard, routes=routes, models=models)
