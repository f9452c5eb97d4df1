"""Who may call what, what a caller sees of the rest, and the upstream's keys."""

import json
from pathlib import Path

from stepdown.proxy.keys import EnvKeys, FirstOf, FixedKeys, KeyDir
from tests.wire.proxy_world import KEY, OTHER_KEY, World, hello, route, run, sha256

MINE = {"Authorization": f"Bearer {KEY}"}
THEIRS = {"Authorization": f"Bearer {OTHER_KEY}"}
WRONG = {"Authorization": "Bearer sd-nobody"}
GUARDED = [
    route("shop/chat", api_key_sha256=(sha256(KEY),)),
    route("other/chat", api_key_sha256=(sha256(OTHER_KEY), sha256("sd-second"))),
    route("other/closed", api_key_sha256=()),
]


def test_a_key_opens_its_routes_and_no_others() -> None:
    """One team would spend another's budget; or learn the names of its routes from how it is refused."""

    async def scene() -> None:
        async with World(GUARDED) as world:
            for headers, model, status, code in (
                (MINE, "chat", 200, None),
                (MINE, "shop/chat", 200, None),
                ({"authorization": f"bEaReR  {KEY} "}, "chat", 200, None),
                (THEIRS, "other/chat", 200, None),
                ({"Authorization": "Bearer sd-second"}, "other/chat", 200, None),
                (MINE, "other/chat", 404, "model_not_found"),
                (MINE, "other/nowhere", 404, "model_not_found"),
                (MINE, "other/closed", 404, "model_not_found"),
                (THEIRS, "chat", 404, "model_not_found"),
                ({}, "chat", 401, "invalid_api_key"),
                ({}, "nowhere", 401, "invalid_api_key"),
                (WRONG, "chat", 401, "invalid_api_key"),
                (WRONG, "nowhere", 401, "invalid_api_key"),
                ({"Authorization": f"Basic {KEY}"}, "chat", 401, "invalid_api_key"),
                ({"Authorization": KEY}, "chat", 401, "invalid_api_key"),
                ({"Authorization": f"Bearer {sha256(KEY)}"}, "chat", 401, "invalid_api_key"),
            ):
                answer = await world.chat(hello(model=model), headers)
                assert answer.status == status, (headers, model)
                if code is not None:
                    assert answer.error["code"] == code
                    assert "x-stepdown-route" not in answer.headers
                    assert "closed" not in answer.error["message"] or model == "other/closed"
            hidden = await world.chat(hello(model="other/chat"), MINE)
            missing = await world.chat(hello(model="other/none"), MINE)
            assert hidden.body.replace(b"other/chat", b"X") == missing.body.replace(b"other/none", b"X")
            assert world.sim.requests == 5

    run(scene())


def test_a_connection_that_changes_its_key_is_judged_anew() -> None:
    """A load balancer that shares connections between clients would give one the rights of another."""

    async def scene() -> None:
        async with World(GUARDED) as world, world.client() as client:
            seen = [(await client.chat(hello(), headers)).status for headers in (MINE, THEIRS, {}, MINE, WRONG)]
            assert seen == [200, 404, 401, 200, 401]

    run(scene())


def test_models_lists_the_callers_routes() -> None:
    """A client could not find out what it may call; or would see everybody's routes."""

    async def scene() -> None:
        open_route = route("shop/open")

        async with World([*GUARDED, open_route]) as world, world.client() as client:
            for headers, names in (
                (MINE, {"chat", "open"}),
                (THEIRS, {"other/chat", "open"}),
                ({}, {"open"}),
                (WRONG, {"open"}),
            ):
                listed = (await client.get("/v1/models", headers)).json()
                assert listed["object"] == "list"
                assert {each["id"] for each in listed["data"]} == names
                assert all(each["object"] == "model" and isinstance(each["created"], int) for each in listed["data"])
        async with World(GUARDED) as world, world.client() as client:
            assert (await client.get("/v1/models")).status == 401
            assert (await client.get("/v1/models", MINE)).json()["data"][0]["owned_by"] == "shop"
        async with World([route()]) as world, world.client() as client:
            assert (await client.get("/v1/models")).json()["data"][0]["id"] == "chat"

    run(scene())


def test_a_route_that_refuses_says_why() -> None:
    """Users of a route whose budget was never valid would not know whom to ask."""

    async def scene() -> None:
        async with World([route(refuse="SpendBudget shop/team was never valid: monthlyLimitUSD is '-1'.")]) as world:
            answer = await world.chat()
            assert (answer.status, answer.error["code"]) == (403, "route_refused")
            assert "SpendBudget shop/team was never valid" in answer.error["message"]
            assert world.sim.requests == 0

    run(scene())


def test_a_key_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    """A rotated key would need a restart; a withdrawn one go on being used."""
    now_s = 0.0
    keys = KeyDir(tmp_path, lambda: now_s)
    assert keys.key("standard") is None
    assert str(tmp_path / "standard") in keys.whence("standard")
    (tmp_path / "standard").write_text("sk-one\n")
    now_s = 2.0
    assert keys.key("standard") == b"sk-one"
    (tmp_path / "next").write_text("sk-two")
    (tmp_path / "next").replace(tmp_path / "standard")
    assert keys.key("standard") == b"sk-one", "looked at once a second"
    now_s = 4.0
    assert keys.key("standard") == b"sk-two"
    (tmp_path / "standard").unlink()
    now_s = 6.0
    assert keys.key("standard") is None


def test_keys_from_the_environment_and_in_turn() -> None:
    """`stepdown run` with two exported keys would send the wrong one, or the Pro channel fall back to the standard key."""
    environment = EnvKeys({"UPSTREAM_API_KEY": "sk-one", "UPSTREAM_API_KEY_PRO": "ga_pro_two"})
    assert (environment.key("standard"), environment.key("pro")) == (b"sk-one", b"ga_pro_two")
    assert EnvKeys({"UPSTREAM_API_KEY": "sk-one"}).key("pro") is None
    assert EnvKeys({"UPSTREAM_API_KEY": "sk-\none"}).key("standard") is None
    both = FirstOf(FixedKeys({"pro": "ga_pro_three"}, "Secret a"), environment)
    assert (both.key("standard"), both.key("pro")) == (b"sk-one", b"ga_pro_three")
    assert "Secret a" in both.whence("pro") and "UPSTREAM_API_KEY_PRO" in both.whence("pro")


def test_an_error_is_one_that_the_openai_client_understands() -> None:
    """Clients would see a parse error where a sentence was meant for them."""

    async def scene() -> None:
        async with World(GUARDED) as world:
            for body in (hello(), b"{", hello(model="x")):
                raw = (await world.chat(body)).body if isinstance(body, dict) else None
                if raw is not None:
                    assert set(json.loads(raw)) == {"error"}
            async with world.client() as client:
                assert set((await client.get("/nowhere")).json()["error"]) == {"message", "type", "param", "code"}

    run(scene())
