"""The certificate that sync is served with: one that was given, or one of the operator's own CA. `sync.server` uses it."""

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Tls(Protocol):
    """A server's certificate, kept good while it serves."""

    context: ssl.SSLContext
    """For the listening socket. What `tend` renews is in force for the next handshake."""

    @property
    def bundle(self) -> str:
        """PEM: what proxies must trust, now and after the next rotation. It goes into each fleet's ConfigMap (`ca.crt`)."""

    def tend(self, now_s: float) -> None:
        """Re-reads or rotates what is due. Cheap when nothing is."""

    def published(self, bundle: str, now_s: float) -> None:
        """Every fleet's ConfigMap has this bundle."""


class GivenTls:
    """`tls.crt`, `tls.key` and `ca.crt` of a mounted Secret, such as cert-manager writes; read again when they change."""

    def __init__(self, path: Path) -> None:
        raise NotImplementedError


class Authority:
    """The operator's own CA, in a directory on the ledger's volume, and the certificate that it issues for this process."""

    def __init__(self, path: Path, names: Sequence[str], now_s: float) -> None:
        """`names`: DNS names and addresses of the server (`service_names`)."""
        raise NotImplementedError


def service_names(namespace: str, *others: str, service: str = "stepdown") -> tuple[str, ...]:
    """The Service's names from anywhere in the cluster, and what else leads to this process, such as its pod's address."""
    names = (service, f"{service}.{namespace}", f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local")
    return tuple(dict.fromkeys(name for name in (*names, *others) if name))
