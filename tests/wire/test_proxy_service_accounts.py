"""Who calls by a ServiceAccount token: what it opens, what else it does not, and what it costs."""

import asyncio

from stepdown.model.config import Issuer
from tests.unit.proxy_money import NOW_S
from tests.unit.token_issuer import EC_KEY, ISSUER, RSA_KEY, URL, claims, token
from tests.wire.proxy_world import KEY, World, hello, route, run, sha256

ROUTES = [
    route("shop/chat", api_key_sha256=(), service_accounts=("shop/web", "shop/batch")),
    route("shop/both", api_key_sha256=(sha256(KEY),), service_accounts=("shop/web",)),
    route("other/chat", api_key_sha256=(), service_accounts=("other/web",)),
    route("shop/open"),
]
FLEET = {"issuer": ISSUER}


def bearer(said: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {said}"}


WEB = bearer(token(claims(NOW_S)))
BATCH = bearer(token(claims(NOW_S, "shop/batch"), EC_KEY))
STRANGER = bearer(token(claims(NOW_S, "elsewhere/web")))
EXPIRED = bearer(token(claims(NOW_S - 7200)))
FORGED = bearer(token(claims(NOW_S), RSA_KEY, kid="ec"))


def test_a_token_opens_the_routes_of_its_account_and_no_others() -> None:
    """One workload would spend another's budget, or learn the names of its routes."""

    async def scene() -> None:
        async with World(ROUTES, fleet=FLEET) as world:
            for headers, model, status, code in (
                (WEB, "chat", 200, None),
                (WEB, "both", 200, None),
                (WEB, "open", 200, None),
                (BATCH, "chat", 200, None),
                (bearer(KEY), "both", 200, None),
                (BATCH, "both", 404, "model_not_found"),
                (WEB, "other/chat", 404, "model_not_found"),
                (WEB, "other/none", 404, "model_not_found"),
                (bearer(KEY), "chat", 404, "model_not_found"),
                (STRANGER, "chat", 401, "invalid_api_key"),
                (EXPIRED, "chat", 401, "invalid_api_key"),
                (FORGED, "chat", 401, "invalid_api_key"),
                ({}, "chat", 401, "invalid_api_key"),
                ({}, "none", 401, "invalid_api_key"),
            ):
                answer = await world.chat(hello(model=model), headers)
                assert answer.status == status, (headers, model, answer.body)
                if code is not None:
                    assert answer.error["code"] == code
            hidden = await world.chat(hello(model="other/chat"), WEB)
            missing = await world.chat(hello(model="other/none"), WEB)
            assert hidden.body.replace(b"other/chat", b"X") == missing.body.replace(b"other/none", b"X")
            assert "it has expired" in (await world.chat(hello(model="chat"), EXPIRED)).error["message"]

    run(scene())


def test_models_lists_what_the_token_opens() -> None:
    """A workload could not find out what it may call."""

    async def scene() -> None:
        async with World(ROUTES, fleet=FLEET) as world, world.client() as client:
            for headers, names in (
                (WEB, {"chat", "both", "open"}),
                (BATCH, {"chat", "open"}),
                (STRANGER, {"open"}),
                ({}, {"open"}),
            ):
                listed = (await client.get("/v1/models", headers)).json()
                assert {each["id"] for each in listed["data"]} == names

    run(scene())


def test_a_token_is_verified_once_and_not_after_its_end() -> None:
    """A signature costs more than all else that a request costs the proxy; and a token that has ended must not live on in a
    memory."""

    async def scene() -> None:
        async with World(ROUTES, fleet=FLEET) as world, world.client() as client:
            short = bearer(token(claims(world.clock.now_s(), exp=world.clock.now_s() + 1.5)))
            for _ in range(3):
                assert (await client.chat(hello(), short)).status == 200
            assert world.app.till.table is not None
            callers = world.app.server.wire.callers(world.app.till.table)
            assert len(callers._tokens) == 1
            await asyncio.sleep(1.6)
            assert (await client.chat(hello(), short)).status == 401

    run(scene())


def test_new_keys_are_in_force_with_the_config_and_without_keys_nobody_is_let_in() -> None:
    """After the cluster's keys were changed because one had leaked, the old one must open nothing."""

    async def scene() -> None:
        async with World(ROUTES) as world, world.client() as client:
            refused = await client.chat(hello(), WEB)
            assert refused.status == 401 and "does not know by which keys" in refused.error["message"]
            world._fleet = FLEET
            world.publish(ROUTES)
            await world.app.syncer.once()
            assert (await client.chat(hello(), WEB)).status == 200
            world._fleet = {"issuer": Issuer(url=URL, keys=ISSUER.keys[:1])}
            world.publish(ROUTES)
            await world.app.syncer.once()
            assert (await client.chat(hello(), WEB)).status == 401
            assert (await client.chat(hello(), BATCH)).status == 200

    run(scene())
