"""`stepdown operator`: the operator in a cluster. All that it does is in `stepdown.watch.run`; here are its options.

Every option is also an environment variable, STEPDOWN_ and its name: that is how the chart sets them.
"""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from stepdown.cli.errors import AddressInUse, CommandError, LedgerUnusable
from stepdown.cli.place import LedgerPlace, with_password_file
from stepdown.cli.run import Address

_DIRECTORY = click.Path(file_okay=False, path_type=Path)


def _option(name: str, *names: str, **settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    variable = "STEPDOWN_" + name.lstrip("-").replace("-", "_").upper()
    return click.option(name, *names, envvar=variable, show_envvar=True, show_default=True, **settings)


@click.command()
@_option("--namespace", default="stepdown-system", metavar="NAME", help="The operator's own namespace.")
@_option("--fleet-namespaces", default="*", metavar="NAMES", help="Where RoutingProxies get their pods; * is everywhere.")
@_option("--image", required=True, metavar="IMAGE", help="Of the proxies: the operator's own.")
@_option(
    "--image-pull-policy",
    type=click.Choice(["Always", "IfNotPresent", "Never"]),
    default="IfNotPresent",
    help="Of the proxies.",
)
@_option("--image-pull-secrets", default="", metavar="NAMES", help="Secrets in the fleets' namespaces.")
@_option(
    "--allowed-upstreams", default="https://global-apis.com/v1", metavar="URLS", help="What a RoutingProxy may name as baseURL."
)
@_option(
    "--ledger",
    "ledger_place",
    type=LedgerPlace(),
    default="/var/lib/stepdown/ledger.db",
    metavar="FILE|URL",
    help="The spend ledger; made on the first start. postgresql://USER@HOST/DATABASE for several replicas.",
)
@_option(
    "--ledger-password-file",
    type=click.Path(dir_okay=False),
    default="",
    metavar="FILE",
    help="The password of --ledger, if it is neither in the address nor in PGPASSWORD or PGPASSFILE.",
)
@_option("--state-dir", type=_DIRECTORY, default=Path("/var/lib/stepdown"), metavar="DIR", help="For the sync CA.")
@_option(
    "--tls-dir", type=_DIRECTORY, metavar="DIR", help="tls.crt, tls.key and ca.crt to serve sync with, instead of an own CA."
)
@_option("--listen", type=Address(), default="0.0.0.0:8443", metavar="HOST:PORT", help="Sync with the proxies, HTTPS.")
@_option("--http", type=Address(), default="0.0.0.0:9090", metavar="HOST:PORT", help="Health, metrics and views.")
@_option("--sync-url", metavar="URL", help="Where proxies reach the operator.  [default: https://stepdown.NAMESPACE.svc:8443]")
@_option(
    "--address",
    default="",
    metavar="URL|IP",
    help="Where proxies reach this very replica, such as its pod's IP, if there are several.",
)
@_option("--identity", metavar="NAME", help="Of this process in the Lease.  [default: the host's name]")
@_option(
    "--kubeconfig", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Instead of the pod's own access."
)
@_option("--log-format", type=click.Choice(["logfmt", "json"]), default="logfmt", help="Of stderr.")
def operator(
    namespace: str,
    fleet_namespaces: str,
    image: str,
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"],
    image_pull_secrets: str,
    allowed_upstreams: str,
    ledger_place: str | Path,
    ledger_password_file: str,
    state_dir: Path,
    tls_dir: Path | None,
    listen: tuple[str, int],
    http: tuple[str, int],
    sync_url: str | None,
    address: str,
    identity: str | None,
    kubeconfig: Path | None,
    log_format: Literal["logfmt", "json"],
) -> None:
    """Run the operator: watch the objects of a cluster, keep the ledger, and keep every fleet of proxies as planned."""
    from stepdown.cluster.errors import ClusterError
    from stepdown.ledger.errors import LedgerError
    from stepdown.watch.options import Options, own_url, split
    from stepdown.watch.run import CannotServe, Ended, serve

    options = Options(
        namespace=namespace,
        fleet_namespaces=split(fleet_namespaces),
        image=image,
        pull_policy=image_pull_policy,
        pull_secrets=split(image_pull_secrets),
        allowed_upstreams=split(allowed_upstreams),
        ledger=with_password_file(ledger_place, ledger_password_file),
        state_dir=state_dir,
        tls_dir=tls_dir,
        listen=listen,
        http=http,
        sync_url=sync_url or f"https://stepdown.{namespace}.svc:8443",
        address=own_url(address, listen[1]),
        identity=identity or socket.gethostname(),
        kubeconfig=kubeconfig,
        log_format=log_format,
    )
    try:
        code = serve(options)
    except CannotServe as error:
        raise AddressInUse(str(error)) from None
    except LedgerError as error:
        raise LedgerUnusable(str(error)) from None
    except (ClusterError, Ended) as error:
        raise CommandError(str(error)) from None
    raise SystemExit(code)
