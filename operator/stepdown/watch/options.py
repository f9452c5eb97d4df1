"""The operator's command line, understood. `cli.operator` makes it, `run` reads it."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from stepdown.sync.log import LogFormat

PullPolicy = Literal["Always", "IfNotPresent", "Never"]


@dataclass(frozen=True, slots=True)
class Options:
    """Every setting of one process."""

    namespace: str
    """The operator's own: its Lease, its witness, and budgets with a namespaceSelector."""
    fleet_namespaces: tuple[str, ...]
    """`*`: everywhere."""
    image: str
    """Of the proxies."""
    allowed_upstreams: tuple[str, ...]
    ledger: str | Path
    """A file, or the address of a PostgreSQL database, which several replicas may share."""
    state_dir: Path
    listen: tuple[str, int]
    """Sync, HTTPS."""
    http: tuple[str, int]
    """Health, metrics, views."""
    sync_url: str
    """Where proxies find the leader: the operator's Service."""
    identity: str
    """The pod's name."""
    address: str = ""
    """This process's own sync URL, for proxies that reached another replica."""
    pull_policy: PullPolicy = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    kubeconfig: Path | None = None
    tls_dir: Path | None = None
    """A certificate that is given, instead of the operator's own CA."""
    log_format: LogFormat = "logfmt"

    @property
    def hosts(self) -> tuple[str, ...]:
        """What else than the Service's names leads here, for the certificate."""
        found = (urlsplit(url).hostname or "" for url in (self.sync_url, self.address))
        return tuple(dict.fromkeys(host for host in found if host))


def split(text: str) -> tuple[str, ...]:
    """`a,b` or `a b`, as environment variables hold lists."""
    return tuple(part for part in re.split(r"[\s,]+", text) if part)


def own_url(address: str, port: int) -> str:
    """Where proxies reach this replica: as it was given, or of a pod's IP, which Kubernetes says without brackets or port."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    return f"https://[{ip}]:{port}" if ip.version == 6 else f"https://{ip}:{port}"
