"""May we write an object that is not known to be ours? `children` asks before its first apply of a name.

Apply by force takes whatever bears the name: a RoutingProxy called `web` would turn the Service `web` of somebody's application
into its own. So the object must not be there, or be controlled by that RoutingProxy, or be an orphan with our labels.
"""

from collections.abc import Mapping
from typing import Any

from stepdown.cluster.client import Cluster
from stepdown.cluster.errors import Conflict
from stepdown.cluster.mirror import Key, child_of


async def check(cluster: Cluster, key: Key, owner: str, uid: str, labels: Mapping[str, str]) -> None:
    """Raises Conflict where the name is somebody else's; ClusterError where that cannot be asked."""
    there = await cluster.get(key.kind, key.namespace, key.name, metadata_only=True)
    if there is not None and (reason := refusal(there["metadata"], owner, uid, labels)):
        raise Conflict(f"{key} {reason}", status=409, reason="NotOurs")


def refusal(metadata: Mapping[str, Any], owner: str, uid: str, labels: Mapping[str, str]) -> str:
    """Why an object may not be taken; empty if it may."""
    controller = next((each for each in metadata.get("ownerReferences") or () if each.get("controller")), None)
    if controller is None:
        has = metadata.get("labels") or {}
        if all(has.get(label) == value for label, value in labels.items()):
            return ""
        return (
            f"is there already and not part of RoutingProxy {owner}: it is left as it is. "
            "Delete it, or give the RoutingProxy another name"
        )
    if controller.get("uid") == uid:
        return ""
    seen = child_of(metadata)
    if seen.owner == owner:
        return f"still belongs to the RoutingProxy {owner} that was deleted: it is made anew once it has been collected"
    return (
        f"is controlled by {controller.get('kind')} {controller.get('name')}: it is left as it is. "
        "Give the RoutingProxy another name"
    )
