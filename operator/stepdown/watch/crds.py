"""Says when the CRDs in the cluster are not those of this version: fields that they do not know are dropped before anybody sees
them, without an error. `lead` starts it.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from stepdown.cluster.client import Cluster
from stepdown.cluster.errors import ClusterError
from stepdown.cluster.kinds import CUSTOM_RESOURCE_DEFINITION
from stepdown.model.base import GROUP, VERSION
from stepdown.model.crd import crd
from stepdown.model.resources import KINDS
from stepdown.sync import log

LOOK_S = 600.0


async def report_stale(cluster: Cluster, *, look_s: float = LOOK_S) -> None:
    """Until cancelled. Where CRDs may not be read, nothing is known of them, and the line of the log says that."""
    ours = await asyncio.to_thread(lambda: {kind.plural: schema_of(crd(kind)) for kind in KINDS.values()})
    said: dict[str, str] = {}
    while True:
        for plural, schema in ours.items():
            name = f"{plural}.{GROUP}"
            found = await _judged(cluster, name, schema)
            if found and said.get(name) != found:
                log.warning(found, event="crds", object=f"CustomResourceDefinition {name}")
            elif not found and said.get(name):
                log.info(f"the CRD {name} is that of this version now", event="crds")
            said[name] = found
        await asyncio.sleep(look_s)


def schema_of(definition: Mapping[str, Any]) -> Any:
    """What of a CRD decides about objects: the schema of our version, without its prose."""
    versions = definition["spec"]["versions"]
    version: Mapping[str, Any] = next((each for each in versions if each["name"] == VERSION), {})
    return _without_prose(version.get("schema"))


async def _judged(cluster: Cluster, name: str, schema: Any) -> str:
    """What is wrong, or nothing."""
    try:
        there = await cluster.get(CUSTOM_RESOURCE_DEFINITION, "", name)
    except ClusterError as error:
        return f"whether the CRD {name} is that of this version is not known: {error}"
    if there is None or schema_of(there) == schema:
        return ""
    return (
        f"the CRD {name} is not that of this version of stepdown: what it does not know is dropped without an error."
        " Apply the CRDs of this version (helm upgrade does, where it keeps them)"
    )


def _without_prose(node: Any) -> Any:
    """Without descriptions, but with a property of that name."""
    if isinstance(node, list):
        return [_without_prose(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {key: _without_prose(value) for key, value in node.items() if key != "description" or not isinstance(value, str)}
