"""A fleet's config as ConfigMaps: one for the fleet with the certificates, one for each shard that has routes.

They are what a proxy starts from while the operator is away; while it is there, sync is faster. `render.objects` calls this.
"""

import base64

from stepdown.model.config import digest
from stepdown.model.mounted import CA_FILE, FLEET_FILE, encode, pack, shard_file
from stepdown.render.config import FleetConfig, ShardFile
from stepdown.render.parts import Names, Object, made

DIGEST_ANNOTATION = "stepdown.dev/digest"
"""The revision of what is in a ConfigMap: what proxies report as what they have in force."""


def config_maps(names: Names, config: FleetConfig, ca_bundle: str) -> list[Object]:
    """The fleet's ConfigMap, then those of its shards that are not empty."""
    fleet = {FLEET_FILE: encode(config.fleet).decode(), CA_FILE: ca_bundle}
    maps = [_config_map(names, names.fleet_map, digest(config.fleet), data=fleet)]
    for index, shard in sorted(config.shards.items()):
        file = _file(config, index) if shard.routes else None
        if file is None or not file.name:
            continue
        content = {"data": {file.name: file.text}} if file.text else {"binaryData": {file.name: file.packed}}
        maps.append(_config_map(names, names.shard_map(index), file.digest, **content))
    return maps


def left_out(config: FleetConfig) -> tuple[int, ...]:
    """Shards that are too large for a ConfigMap even when compressed: proxies get them by sync alone."""
    return tuple(index for index, shard in sorted(config.shards.items()) if shard.routes and not _file(config, index).name)


def _file(config: FleetConfig, index: int) -> ShardFile:
    known = config.files.get(index)
    if known is None or known.digest != config.digests[index]:
        known = config.files[index] = _packed(config, index)
    return known


def _packed(config: FleetConfig, index: int) -> ShardFile:
    packed = pack(shard_file(index), encode(config.shards[index]))
    if packed is None:
        return ShardFile(config.digests[index], "")
    name, data = packed
    if name == shard_file(index):
        return ShardFile(config.digests[index], name, text=data.decode())
    return ShardFile(config.digests[index], name, packed=base64.b64encode(data).decode())


def _config_map(names: Names, name: str, revision: str, **content: dict[str, str]) -> Object:
    config_map = made(names, "v1", "ConfigMap", name, **content)
    config_map["metadata"]["annotations"] = {DIGEST_ANNOTATION: revision}
    return config_map
