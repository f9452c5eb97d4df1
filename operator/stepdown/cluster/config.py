"""Where the API server is and who we are: in a pod, or by a kubeconfig. `client.connect` calls it.

Loading is the Kubernetes client's own (contexts, exec plugins, cloud tokens). What is added: credentials are read again while
the process lives, since a pod's token is replaced every hour and an exec plugin's may be gone in minutes.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_kube_config
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

from stepdown.cluster.clock import elapsed_s
from stepdown.cluster.errors import NotConfigured

log = logging.getLogger(__name__)

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RENEW_S = 60.0
"""How old credentials may be before they are read again."""
_BROKEN = (ConfigException, OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError)
"""What the loaders raise for a file that is not what it should be."""


class _Loader(Protocol):
    """How to read the credentials once more, into the configuration."""

    async def __call__(self) -> None: ...


class Credentials:
    """The Authorization header as it is now."""

    def __init__(
        self,
        configuration: Configuration,
        load: _Loader,
        *,
        periodic: bool,
        clock: Callable[[], float],
        namespace: str = "default",
    ) -> None:
        """`periodic`: whether the credentials are read again every minute, or only once they have been refused."""
        self.namespace = namespace
        """Where whoever names none is at home: the context's namespace, or the pod's."""
        self._configuration, self._load, self._periodic, self._clock = configuration, load, periodic, clock
        self._read_s = clock()
        self._lock = asyncio.Lock()

    async def header(self) -> str:
        """Empty where a client certificate says who we are."""
        if self._periodic and self._clock() >= self._read_s + RENEW_S:
            await self._renew()
        return self._token()

    async def renew(self, refused: str) -> bool:
        """After a 401 to `refused`: whether there is another header to try."""
        if self._token() == refused:
            await self._renew()
        return self._token() != refused

    def _token(self) -> str:
        token: str = self._configuration.api_key.get("BearerToken", "")
        return token.strip()  # a token file may end with a newline, a header may not

    async def _renew(self) -> None:
        async with self._lock:
            try:
                await self._load()
            except _BROKEN as error:
                log.warning("the credentials for the API server could not be read again: %s; the ones before are used", error)
            self._read_s = self._clock()


async def load(
    kubeconfig: Path | None,
    context: str | None,
    *,
    environ: Mapping[str, str] = os.environ,
    service_account: Path = SERVICE_ACCOUNT,
    clock: Callable[[], float] = elapsed_s,
) -> tuple[Configuration, Credentials]:
    """The file that was named; else $KUBECONFIG, the pod's own ServiceAccount, ~/.kube/config. Raises NotConfigured."""
    if kubeconfig is not None:
        return await _from_file(str(kubeconfig), context, clock)
    if environ.get("KUBECONFIG"):
        return await _from_file(environ["KUBECONFIG"], context, clock)
    if environ.get("KUBERNETES_SERVICE_HOST") and context is None:
        return await _from_pod(environ, service_account, clock)
    home = _existing("~/.kube/config")
    if home:
        return await _from_file(home, context, clock)
    raise NotConfigured(
        "no API server is known: this is not a pod, $KUBECONFIG is not set and there is no ~/.kube/config. "
        "Name a kubeconfig with --kubeconfig."
    )


async def _from_file(paths: str, context: str | None, clock: Callable[[], float]) -> tuple[Configuration, Credentials]:
    """`paths`: one, or several joined with `:` as $KUBECONFIG has them."""
    if not _existing(paths):
        raise NotConfigured(f"kubeconfig {paths}: there is no such file")
    configuration = Configuration()
    try:
        loader = await load_kube_config(  # type: ignore[no-untyped-call]
            paths, context=context, client_configuration=configuration, persist_config=False
        )
    except _BROKEN as error:
        raise NotConfigured(f"kubeconfig {paths}: {error}") from error

    async def again() -> None:
        await loader.load_and_set(configuration)

    # An exec plugin that gives no expiry may ask a person or a slow service: it runs again only when its token is refused.
    plugin_without_expiry = _uses_plugin(loader) and not hasattr(loader, "exec_plugin_expiry")
    credentials = Credentials(
        configuration, again, periodic=not plugin_without_expiry, clock=clock, namespace=_namespace(loader)
    )
    return configuration, credentials


def _existing(paths: str) -> str:
    """The paths, if there is a file behind any of them; else nothing."""
    return paths if any(Path(path).expanduser().is_file() for path in paths.split(os.pathsep) if path) else ""


def _uses_plugin(loader: Any) -> bool:
    user = loader._user  # the loader has no other way to ask
    return user is not None and "exec" in user


def _namespace(loader: Any) -> str:
    """Of the context in use."""
    return str(loader._current_context["context"].safe_get("namespace") or "default")


async def _from_pod(
    environ: Mapping[str, str], service_account: Path, clock: Callable[[], float]
) -> tuple[Configuration, Credentials]:
    configuration = Configuration()
    loader = InClusterConfigLoader(  # type: ignore[no-untyped-call]
        token_filename=str(service_account / "token"),
        cert_filename=str(service_account / "ca.crt"),
        try_refresh_token=False,  # `Credentials` does it, and asks at once when a token was refused
        environ=environ,
    )

    async def again() -> None:
        loader.load_and_set(configuration)  # type: ignore[no-untyped-call]

    try:
        await again()
    except _BROKEN as error:
        raise NotConfigured(
            f"this is a pod, but its ServiceAccount cannot be used ({service_account}): {error}. "
            "Has the pod automountServiceAccountToken: false?"
        ) from error
    try:
        namespace = (service_account / "namespace").read_text(encoding="utf-8").strip()
    except OSError:
        namespace = "default"
    return configuration, Credentials(configuration, again, periodic=True, clock=clock, namespace=namespace)
