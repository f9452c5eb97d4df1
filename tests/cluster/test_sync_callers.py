"""A workload's token from a real API server, verified as a proxy does it: by the keys that this API server publishes."""

import time

import pytest
from devcluster import Cluster as DevCluster

from stepdown.cluster.client import Cluster
from stepdown.cluster.kinds import SERVICE_ACCOUNT
from stepdown.proxy.tokens import TokenError, Verifier
from stepdown.sync.callers import token_issuer
from tests.cluster.fleet import run


def token(cluster: DevCluster, namespace: str, *audiences: str) -> bytes:
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": list(audiences), "expirationSeconds": 600},
    }
    status, answer = cluster.request("POST", f"{SERVICE_ACCOUNT.path(namespace, 'default')}/token", body)
    assert status == 201, answer
    made: str = answer["status"]["token"]
    return made.encode()


def test_a_token_for_us_is_taken_and_one_for_anybody_else_is_not(cluster: DevCluster, namespace: str) -> None:
    """What the kubelet projects is a workload's key; its token for the API server must not be one, or every proxy could use
    it there."""

    async def work() -> None:
        async with Cluster.connect(cluster.kubeconfig) as client:
            issuer = await token_issuer(client)
            assert issuer == await token_issuer(client) and issuer.keys
        verifier = Verifier(issuer)
        now_s = time.time()  # noqa: TID251 (the API server's clock is this machine's)
        account, ends_s = verifier.account(token(cluster, namespace, "stepdown-proxy"), now_s)
        assert account == f"{namespace}/default" and now_s + 500 < ends_s <= now_s + 600
        assert verifier.account(token(cluster, namespace, "other", "stepdown-proxy"), now_s)[0] == account
        for audiences in ((), ("stepdown",)):
            with pytest.raises(TokenError, match="not meant for audience"):
                verifier.account(token(cluster, namespace, *audiences), now_s)
        with pytest.raises(TokenError, match="has expired"):
            verifier.account(token(cluster, namespace, "stepdown-proxy"), now_s + 601)

    run(work())
