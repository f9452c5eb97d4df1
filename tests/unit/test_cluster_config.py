"""Who we are to the API server, as long as the process lives. If these fail, an operator stops an hour after its start."""

import asyncio
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from stepdown.cluster import config
from stepdown.cluster.backoff import Backoff, retrying
from stepdown.cluster.client import Cluster
from stepdown.cluster.errors import Forbidden, NotConfigured, Unauthorized, Unavailable
from stepdown.cluster.kinds import CONFIG_MAP
from stepdown.cluster.wire import Wire
from tests.unit.cluster_server import Api, config_map, obj, run, status, write_kubeconfig

REFUSED = status(401, "Unauthorized", "Unauthorized")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def pod(folder: Path, token: str) -> Path:
    """A mounted ServiceAccount."""
    (folder / "token").write_text(token + "\n", encoding="ascii")
    (folder / "ca.crt").write_text("a certificate", encoding="ascii")
    return folder


def test_a_pods_token_is_read_again_before_it_expires(tmp_path: Path) -> None:
    """A bound token lives an hour; the kubelet replaces the file and tells nobody."""

    async def scene() -> None:
        clock = Clock()
        environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
        loaded, credentials = await config.load(
            None, None, environ=environ, service_account=pod(tmp_path, "first"), clock=clock
        )
        assert loaded.host == "https://[fd00::1]:443"
        assert await credentials.header() == "bearer first"
        pod(tmp_path, "second")
        assert await credentials.header() == "bearer first"
        clock.now_s += 61
        assert await credentials.header() == "bearer second"
        # A file that is being replaced must not take away what is still valid.
        (tmp_path / "token").unlink()
        clock.now_s += 61
        assert await credentials.header() == "bearer second"

    run(scene())


def test_a_refused_token_is_read_again_at_once(tmp_path: Path) -> None:
    """After a change of the cluster's signing keys every request would fail for a minute."""

    async def scene() -> None:
        async with Api(tmp_path) as api:
            path = tmp_path / "kube-token"
            path.write_text("first", encoding="ascii")
            kubeconfig = api.kubeconfig({"tokenFile": str(path)})
            async with Cluster.connect(kubeconfig) as cluster:
                path.write_text("second", encoding="ascii")
                api.answer(REFUSED, obj(config_map("x")))
                assert await cluster.get(CONFIG_MAP, "shop", "x") is not None
                sent = [asked.headers["Authorization"] for asked in api.asked]
                assert sent == ["Bearer first", "Bearer second"]
                # Nothing newer there: one try, and the answer stands.
                api.answer(REFUSED)
                with pytest.raises(Unauthorized):
                    await cluster.get(CONFIG_MAP, "shop", "x")
                assert len(api.asked) == 3

    run(scene())


def plugin(folder: Path, expiry: str) -> dict[str, Any]:
    """An exec plugin that gives another token each time it is asked."""
    script = folder / "plugin"
    counter = folder / "asked"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib\n"
        f"path = pathlib.Path({str(counter)!r})\n"
        "count = int(path.read_text()) + 1 if path.exists() else 1\n"
        "path.write_text(str(count))\n"
        f"status = {{'token': f'token-{{count}}', **({{'expirationTimestamp': {expiry!r}}} if {expiry!r} else {{}})}}\n"
        "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential', 'status': status}))\n",
        encoding="utf-8",
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script)}}


@pytest.mark.parametrize(
    ("expiry", "later"),
    [("2020-01-01T00:00:00Z", "Bearer token-2"), ("2999-01-01T00:00:00Z", "Bearer token-1"), ("", "Bearer token-1")],
)
def test_an_exec_plugin_is_asked_again_when_its_token_expires(tmp_path: Path, expiry: str, later: str) -> None:
    """A cloud's tokens live for minutes; a plugin that opens a browser must not be asked each minute."""

    async def scene() -> None:
        clock = Clock()
        path = write_kubeconfig(tmp_path, "http://127.0.0.1:1", plugin(tmp_path, expiry))
        _, credentials = await config.load(path, None, clock=clock)
        assert await credentials.header() == "Bearer token-1"
        clock.now_s += 61
        assert await credentials.header() == later
        assert await credentials.renew("Bearer token-0"), "another asked meanwhile"

    run(scene())


def test_an_exec_plugin_without_expiry_is_asked_when_its_token_is_refused(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, Cluster.connect(api.kubeconfig(plugin(tmp_path, ""))) as cluster:
            api.answer(REFUSED, obj(config_map("x")))
            await cluster.get(CONFIG_MAP, "shop", "x")
            assert [asked.headers["Authorization"] for asked in api.asked] == ["Bearer token-1", "Bearer token-2"]
            api.answer(REFUSED, REFUSED)
            with pytest.raises(Unauthorized):  # a plugin that always has another token is no reason to go on for ever
                await cluster.get(CONFIG_MAP, "shop", "x")
            assert len(api.asked) == 4

    run(scene())


def test_the_order_in_which_an_api_server_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        named = write_kubeconfig(tmp_path, "http://named:1")
        other = tmp_path / "other"
        other.mkdir()
        fromenv = write_kubeconfig(other, "http://environment:1")
        inpod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
        account = pod(tmp_path, "t")

        async def host(path: Path | None, environ: dict[str, str]) -> str:
            loaded, _ = await config.load(path, None, environ=environ, service_account=account)
            found: str = loaded.host
            return found

        assert await host(named, {"KUBECONFIG": str(fromenv), **inpod}) == "http://named:1"
        assert await host(None, {"KUBECONFIG": str(fromenv), **inpod}) == "http://environment:1"
        assert await host(None, inpod) == "https://10.0.0.1:443"
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(NotConfigured, match="this is not a pod"):
            await host(None, {})
        (tmp_path / ".kube").mkdir()
        write_kubeconfig(tmp_path / ".kube", "http://home:1").rename(tmp_path / ".kube" / "config")
        assert await host(None, {}) == "http://home:1"

    run(scene())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "kubeconfig"),
        ("{", "kubeconfig"),
        ("[]", "kubeconfig"),
        ("current-context: gone\ncontexts: []\nclusters: []\n", "name gone"),
    ],
)
def test_a_kubeconfig_that_is_none_says_so(tmp_path: Path, text: str, says: str) -> None:
    """A traceback from inside a library tells nobody which file is wrong."""

    async def scene() -> None:
        path = tmp_path / "kubeconfig"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(NotConfigured) as caught:
            await config.load(path, None)
        assert str(path) in str(caught.value) and says in str(caught.value)
        with pytest.raises(NotConfigured, match="there is no such file"):
            await config.load(tmp_path / "missing", None)
        with pytest.raises(NotConfigured, match="automountServiceAccountToken"):
            environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
            await config.load(None, None, environ=environ, service_account=tmp_path)

    run(scene())


def test_another_context_may_be_named(tmp_path: Path) -> None:
    async def scene() -> None:
        path = write_kubeconfig(tmp_path, "http://one:1")
        with pytest.raises(NotConfigured, match="other"):
            await config.load(path, "other")
        loaded, credentials = await config.load(path, "test")
        wire = Wire(loaded, credentials)
        assert wire.host == "http://one:1"
        await wire.close()

    run(scene())


def test_waits_double_are_jittered_and_obey_the_server() -> None:
    """A fleet of clients that come back at the same moment keeps an API server down."""
    waits = Backoff(1.0, 5.0, draw=lambda: 0.0)
    assert [waits.next_s() for _ in range(4)] == [0.5, 1.0, 2.0, 2.5]
    waits.reset()
    assert Backoff(1.0, 5.0, draw=lambda: 0.5).next_s() == 0.75
    assert waits.next_s(Unavailable("later", retry_after_s=4)) == 4
    assert waits.next_s(Unavailable("much later", retry_after_s=4000)) == 5
    assert waits.next_s(Forbidden("no")) == 2.0


def test_only_what_may_pass_by_itself_is_tried_again() -> None:
    async def scene() -> None:
        tries: list[int] = []

        async def fails_twice() -> str:
            tries.append(1)
            if len(tries) < 3:
                raise Unavailable("later")
            return "done"

        quick = Backoff(0.001, 0.002)
        assert await retrying(fails_twice, backoff=quick) == "done"
        tries.clear()
        with pytest.raises(Unavailable):
            await retrying(fails_twice, attempts=2, backoff=quick)

        async def refused() -> None:
            tries.append(1)
            raise Forbidden("no")

        tries.clear()
        with pytest.raises(Forbidden):
            await retrying(refused, backoff=quick)
        assert len(tries) == 1

    asyncio.run(scene())


def test_the_namespace_is_the_context_s_or_the_pod_s(tmp_path: Path) -> None:
    """A person who works in `shop` is shown `shop` by every other tool, and would read another team's figures as their own."""

    async def scene() -> None:
        path = write_kubeconfig(tmp_path, "http://one:1")
        assert (await config.load(path, None))[1].namespace == "default"
        path.write_text(path.read_text().replace("cluster: test\n", "cluster: test\n    namespace: shop\n", 1))
        async with Cluster.connect(path) as cluster:
            assert cluster.namespace == "shop"
        environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
        account = pod(tmp_path, "t")
        assert (await config.load(None, None, environ=environ, service_account=account))[1].namespace == "default"
        (account / "namespace").write_text("team\n")
        assert (await config.load(None, None, environ=environ, service_account=account))[1].namespace == "team"

    run(scene())
