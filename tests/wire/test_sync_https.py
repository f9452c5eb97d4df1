"""Sync over HTTPS, on real sockets with real TLS. If these fail, proxies of a cluster get no money, or somebody else does."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import uvloop

from stepdown.budget import serving
from stepdown.ledger import Ledger
from stepdown.model.sync import Ask, LeaseReport, SyncAnswer, SyncRefused, SyncRequest, SyncUnavailable
from stepdown.proxy.clock import Clock
from stepdown.proxy.syncline import BadUrl, HttpsLine
from stepdown.sync.fleets import LiveFleet
from stepdown.sync.message import MAX_BODY
from stepdown.sync.rotation import SERVER_LIFE_S
from stepdown.sync.service import SyncService
from tests.unit.sync_api import FLEET, TOKEN, Review, owned
from tests.wire.sync_world import ACCOUNT, CHAT, CONFIG, Operator, Pod, request, run

LOOPS = pytest.mark.parametrize("loop", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


@LOOPS
def test_one_connection_carries_every_message(tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop] | None) -> None:
    """A handshake a second from each proxy would be most of what the operator does."""

    async def scene() -> None:
        async with Operator(tmp_path) as operator:
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            first = await pod.sync(request(asks=(Ask(id=1, rungs=({ACCOUNT: 10},)),)))
            assert (first.protocol, first.fleet, first.shards, first.asks[0].rung) == (2, CONFIG, (CHAT,), 0)
            streams = pod.sync._streams
            for seq in range(2, 30):
                assert (await pod.sync(request(seq=seq))).seq == seq
            assert pod.sync._streams is streams
            assert operator.https.answers == {200: 29}
            assert operator.api.asked.count("review") == 1

    run(scene(), loop)


def test_what_a_proxy_says_of_itself_is_known_by_its_pod(tmp_path: Path) -> None:
    """`kubectl get rproxy` would count processes, or miss that a key is not there."""

    async def scene() -> None:
        async with Operator(tmp_path) as operator:
            changed: list[str] = []
            operator.service.changed = changed.append
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            for seq, instance in ((1, "before"), (2, "after")):
                await pod.sync(request(instance, seq, ready=True, keys={"standard": False}))
            seen = operator.service.proxies(operator.clock.now_s())[FLEET]
            assert (seen.pods, seen.keys) == (1, {"standard": False})
            assert changed == [FLEET, FLEET]

    run(scene())


def test_a_proxy_whose_fleet_was_made_anew_settles_up_and_gets_nothing(tmp_path: Path) -> None:
    """`kubectl replace --force` would cost a budget what the old pods held, until the month is over."""

    async def scene() -> None:
        async with Operator(tmp_path) as operator:
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            granted = (await pod.sync(request("a", 1, asks=(Ask(id=1, rungs=({ACCOUNT: 400},)),)))).leases[0].granted
            operator.fleets[FLEET] = LiveFleet("fleet-2", 600.0)
            lease = LeaseReport(account=ACCOUNT, granted=granted, returned=0, consumed=150, estimated=0, reserved=0, want=10**6)
            answer = await pod.sync(request("a", 2, leases=(lease,), asks=(Ask(id=2, rungs=({ACCOUNT: 400},)),)))
            assert (answer.fleet, answer.shards, answer.asks) == (None, (), ())
            assert [each.granted for each in answer.leases] == [granted]
            assert (await pod.sync(request("a", 3, leases=(lease,), closing=True))).verdict == "ok"
            (balance,) = (await operator.service.call(lambda ledger: ledger.balances(0.0, ended=True))).values()
            assert (balance.spent_nusd, balance.committed_nusd) == (150, 150)

    run(scene())


class Raw:
    """One TLS connection, byte for byte."""

    def __init__(self, operator: Operator, context: ssl.SSLContext | None = None) -> None:
        self._port = operator.port
        self._context = context or ssl.create_default_context(cadata=operator.authority.bundle)

    async def __aenter__(self) -> "Raw":
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._context, server_hostname="localhost"
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def ask(self, raw: bytes) -> tuple[int, dict[str, str]]:
        self.writer.write(raw)
        head = await self.reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = msgspec.json.decode(await self.reader.readexactly(size))
        return int(head.split()[1]), body.get("error", body)


def post(body: bytes = b"{}", token: str = TOKEN, path: str = "/v1/sync", method: str = "POST", headers: str = "") -> bytes:
    authorization = f"authorization: Bearer {token}\r\n" if token else ""
    head = f"{method} {path} HTTP/1.1\r\nhost: keeper\r\n{authorization}{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def message(**more: object) -> bytes:
    return msgspec.json.encode(request(**more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "status", "code", "says"),
    [
        (post(token=""), 401, "unauthenticated", "no token was sent"),
        (post(token="a.b.c"), 401, "unauthenticated", "invalid bearer token"),
        (post(message(), token="o.t.r"), 403, "forbidden", "there is no RoutingProxy shop/other"),
        (post(message(fleet="shop/other")), 403, "forbidden", "the message is of fleet 'shop/other'"),
        (post(message(instance="0123456789ab.1")), 403, "forbidden", "named for another pod"),
        (post(b"{"), 400, "refused", "not a sync message"),
        (post(b"\x1f\x8b\x08", headers="content-encoding: gzip\r\n"), 400, "refused", "not a sync message"),
        (post(b'{"protocol": 7, "shape": []}'), 400, "refused", "sync protocol 7 is not spoken here, 1, 2 is"),
        (post(b'{"protocol": 2}'), 400, "refused", "missing required field"),
        (post(message(instance="")), 400, "refused", "instance has 0 characters"),
        (post(path="/v2/sync"), 404, "not_found", "only /v1/sync"),
        (post(path="/v1/sync/../x"), 404, "not_found", "only /v1/sync"),
        (post(method="GET"), 405, "method_not_allowed", "takes POST"),
    ],
)
def test_what_is_not_answered_is_told_why(tmp_path: Path, raw: bytes, status: int, code: str, says: str) -> None:
    """A proxy that cannot sync must be diagnosable from its log."""

    async def scene() -> None:
        async with Operator(tmp_path) as operator, Raw(operator) as connection:
            operator.api.tokens["o.t.r"] = Review(user="system:serviceaccount:shop:stepdown-other")
            found, error = await connection.ask(raw)
            assert (found, error["code"]) == (status, code)
            assert says in error["message"]

    run(scene())


def test_another_pod_cannot_use_an_instance(tmp_path: Path) -> None:
    """One pod that was broken into would spend in the others' names."""

    async def scene() -> None:
        async with Operator(tmp_path) as operator:
            operator.api.tokens["t.w.o"] = Review(pod_name="web-2", pod_uid="pod-2")
            operator.api.put(*_pod("web-2", "pod-2"))
            one = Pod(tmp_path / "one", operator.port, operator.authority.bundle)
            two = Pod(tmp_path / "two", operator.port, operator.authority.bundle, token="t.w.o")
            await one.sync(request("a", 1))
            with pytest.raises(SyncUnavailable, match=r"403.*instance a belongs to another pod"):
                await two.sync(request("a", 2))
            assert (await two.sync(request("b", 1))).verdict == "ok"

    run(scene())


def _pod(name: str, uid: str) -> tuple[object, dict[str, object]]:
    from stepdown.cluster.kinds import POD

    return POD, owned(name, uid, "ReplicaSet", "stepdown-web-5d", "rs-1")


@pytest.mark.parametrize("chunked", [False, True])
def test_nothing_is_read_of_a_stranger_and_no_more_than_the_limit_of_anyone(tmp_path: Path, chunked: bool) -> None:
    """Any pod that reaches the port could fill the operator's memory."""
    length = "transfer-encoding: chunked\r\n" if chunked else f"content-length: {MAX_BODY + 1}\r\n"
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n" if chunked else b" " * 0x10000

    async def scene() -> None:
        async with Operator(tmp_path) as operator:
            for token, status in (("", 401), (TOKEN, 413)):
                async with Raw(operator) as connection:
                    authorization = f"authorization: Bearer {token}\r\n" if token else ""
                    head = f"POST /v1/sync HTTP/1.1\r\nhost: k\r\n{authorization}{length}\r\n"
                    connection.writer.write(head.encode())
                    answer = asyncio.create_task(connection.ask(b""))
                    sent = 0
                    while not answer.done() and not connection.writer.is_closing() and sent <= 2 * MAX_BODY:
                        connection.writer.write(piece)
                        sent += len(piece)
                        await asyncio.sleep(0)
                    assert (await answer)[0] == status
                    if not token:
                        assert sent < MAX_BODY // 2, "it was told at once"

    run(scene())


def test_nothing_is_answered_before_every_kind_has_been_listed(tmp_path: Path) -> None:
    """Unknown is never empty: every proxy would be a stranger, and drop what it holds."""
    listed = False

    async def scene() -> None:
        nonlocal listed
        async with Operator(tmp_path, ready=lambda: listed) as operator:
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            with pytest.raises(SyncUnavailable, match=r"503.*not_listed"):
                await pod.sync(request())
            assert operator.api.asked == []
            listed = True
            assert (await pod.sync(request())).verdict == "ok"

    run(scene())


def test_a_proxy_follows_the_leader_and_comes_back_when_it_is_gone(tmp_path: Path) -> None:
    """With two replicas, half of all messages would go nowhere; with a dead leader, all of them."""

    async def scene() -> None:
        where: str | None = ""
        async with Operator(tmp_path) as leader:
            follower = Operator(tmp_path, leader.service, leader=lambda: where)
            async with follower:
                pod = Pod(tmp_path / "pod", follower.port, leader.authority.bundle)
                with pytest.raises(SyncUnavailable, match=r"421.*not_leader.*not known"):
                    await pod.sync(request(seq=1))
                where = f"https://127.0.0.1:{leader.port}"
                for seq in range(2, 6):
                    assert (await pod.sync(request(seq=seq))).seq == seq
                assert (leader.https.answers, follower.https.answers) == ({200: 4}, {421: 2})
                await leader.https.stop(0.1)
                where = None
                with pytest.raises((OSError, SyncUnavailable)):
                    await pod.sync(request(seq=6))
                assert (await pod.sync(request(seq=7))).seq == 7, "the Service leads to who is left"
                assert follower.https.answers == {421: 2, 200: 1}

    run(scene())


def test_who_was_followed_while_it_judged_answers_nothing_any_more(tmp_path: Path) -> None:
    """A process that was paused in mid-transaction would hand out what its follower, by another ledger, has given away."""

    async def scene() -> None:
        where: str | None = None

        class Overtaken(SyncService):
            async def sync(self, request: SyncRequest, pod: serving.Pod | None = None, *, leaving: bool = False) -> SyncAnswer:
                nonlocal where
                answer = await super().sync(request, pod, leaving=leaving)
                where = "https://127.0.0.1:1"
                return answer

        service = Overtaken(Ledger.open(":memory:", create=True), Clock().now_s)
        async with Operator(tmp_path, service, leader=lambda: where) as operator:
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            with pytest.raises((OSError, SyncUnavailable)):
                await pod.sync(request(seq=1))
            assert operator.https.answers == {421: 1}
            assert [each.name for each in await service.call(Ledger.instances)] == ["a"], "its word is kept all the same"
            await service.close()

    run(scene())


@pytest.mark.parametrize(
    "leader", ["http://127.0.0.1:1", "https://", "file:///etc/passwd", "https://127.0.0.1:1/x", "https://h:99999", "rubbish"]
)
def test_a_leader_that_is_no_address_is_not_followed(tmp_path: Path, leader: str) -> None:
    """A token must not go to what is not HTTPS."""

    async def scene() -> None:
        async with Operator(tmp_path, leader=lambda: leader) as follower:
            pod = Pod(tmp_path / "pod", follower.port, follower.authority.bundle)
            with pytest.raises(SyncUnavailable, match="421"):
                await pod.sync(request())
            assert follower.https.answers == {421: 1}

    run(scene())


def test_two_replicas_that_send_each_other_do_not_catch_a_message_between_them(tmp_path: Path) -> None:
    """In the second of a change of leaders a proxy would go round in circles."""

    async def scene() -> None:
        ports: list[int] = []
        one = Operator(tmp_path, leader=lambda: f"https://127.0.0.1:{ports[1]}")
        two = Operator(tmp_path, leader=lambda: f"https://127.0.0.1:{ports[0]}")
        async with one, two:
            ports += [one.port, two.port]
            pod = Pod(tmp_path / "pod", one.port, one.authority.bundle)
            with pytest.raises(SyncUnavailable, match="421"):
                await pod.sync(request())
            assert one.https.answers + two.https.answers == {421: 3}

    run(scene())


def test_a_token_goes_to_the_operator_only(tmp_path: Path) -> None:
    """Who answers on the Service's address, or on that of a leader, would be the fleet to the operator."""

    async def scene() -> None:
        (tmp_path / "other").mkdir()
        async with Operator(tmp_path / "other") as impostor:
            operator = Operator(tmp_path, leader=lambda: f"https://127.0.0.1:{impostor.port}")
            async with operator:
                bundle = operator.authority.bundle
                for port in (impostor.port, operator.port):
                    pod = Pod(tmp_path / "pod", port, bundle)
                    with pytest.raises(SyncUnavailable, match=r"has a certificate that .*ca\.crt does not vouch for"):
                        await pod.sync(request())
                assert impostor.https.answers == {}
                named = HttpsLine(f"https://127.0.0.1:{operator.port}", pod.ca, pod.token)
                with pytest.raises(SyncUnavailable, match="does not vouch for"):
                    await named.open()

    run(scene())


def test_a_new_ca_and_a_new_token_are_used_as_soon_as_they_are_mounted(tmp_path: Path) -> None:
    """A proxy never restarts for config: it would lose the operator with the next rotation."""

    async def scene() -> None:
        (tmp_path / "lost").mkdir()
        async with Operator(tmp_path / "lost") as before:
            old = before.authority.bundle
        async with Operator(tmp_path) as operator:
            pod = Pod(tmp_path / "pod", operator.port, old)
            for _ in range(2):
                with pytest.raises(SyncUnavailable, match="does not vouch for"):
                    await pod.sync(request())
            pod.mount(bundle=old + operator.authority.bundle)
            assert (await pod.sync(request(seq=2))).seq == 2
            streams = pod.sync._streams
            operator.api.tokens["n.e.w"] = Review()
            pod.mount(token="n.e.w\n")
            assert (await pod.sync(request(seq=3))).seq == 3
            assert operator.api.asked.count("review") == 2 and pod.sync._streams is streams
            pod.mount(bundle=operator.authority.bundle)
            assert (await pod.sync(request(seq=4))).seq == 4
            assert pod.sync._streams is not streams, "what is trusted no more is not spoken to any more"

    run(scene())


def test_a_certificate_that_was_renewed_is_shown_without_a_restart(tmp_path: Path) -> None:
    """The live context takes the new one; connections that are open stay."""

    async def scene() -> None:
        async with Operator(tmp_path) as operator:
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            await pod.sync(request(seq=1))
            before = await _shown(operator)
            operator.authority.tend(operator.clock.now_s() + SERVER_LIFE_S / 2)
            assert await _shown(operator) != before
            streams = pod.sync._streams
            assert (await pod.sync(request(seq=2))).seq == 2 and pod.sync._streams is streams

    run(scene())


async def _shown(operator: Operator) -> bytes:
    """Its certificate. Not verified: it may be good from tomorrow on only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with Raw(operator, context) as connection:
        shown = connection.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert isinstance(shown, bytes)
        return shown


@pytest.mark.parametrize("missing", ["ca.crt", "token"])
def test_what_is_not_mounted_yet_is_named_and_looked_for_again(tmp_path: Path, missing: str) -> None:
    """A pod may start before its ConfigMap is there."""

    async def scene() -> None:
        async with Operator(tmp_path) as operator:
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            (tmp_path / "pod" / missing).unlink()
            with pytest.raises(SyncUnavailable, match=f"there is no .*{missing}"):
                await pod.sync(request())
            pod.mount(bundle=operator.authority.bundle, token=TOKEN)
            await pod.sync(request())

    run(scene())


def test_rubbish_in_place_of_a_bundle_or_an_answer_is_no_answer(tmp_path: Path) -> None:
    """Whatever comes over the line, the loop that syncs must live."""

    async def scene() -> None:
        answers = [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", b"HTTP/1.1 200 OK\r\n\r\n", b"SSH-2.0\r\n\r\n", b""]
        async with Operator(tmp_path) as operator:

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answers.pop(0))
                writer.close()

            context = operator.authority.context
            server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
            pod = Pod(tmp_path / "pod", server.sockets[0].getsockname()[1], operator.authority.bundle)
            while answers:
                with pytest.raises((SyncUnavailable, OSError)):
                    await pod.sync(request())
            pod.mount(bundle="-----BEGIN CERTIFICATE-----\nrubbish\n")
            with pytest.raises(SyncUnavailable, match="cannot be read"):
                await pod.sync(request())
            server.close()

    run(scene())


def test_a_message_that_cannot_be_is_refused_and_the_connection_stays(tmp_path: Path) -> None:
    """The next message says more: it must not pay a handshake for the one before."""

    async def scene() -> None:
        async with Operator(tmp_path) as operator:
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            await pod.sync(request(seq=1))
            streams = pod.sync._streams
            with pytest.raises(SyncRefused, match="longest_s"):
                await pod.sync(request(seq=2, longest_s=-1.0))
            await pod.sync(request(seq=3))
            assert pod.sync._streams is streams

    run(scene())


def test_a_ledger_that_fails_is_no_refusal(tmp_path: Path) -> None:
    """A proxy must go on within its lease, and ask again."""

    async def scene() -> None:
        operator = Operator(tmp_path)
        async with operator:
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            await operator.service.call(Ledger.close)
            with pytest.raises(SyncUnavailable, match="503"):
                await pod.sync(request())

    run(scene())


def test_who_never_says_who_it_is_does_not_stay(tmp_path: Path) -> None:
    """A few hundred idle connections from any pod would use up the operator's descriptors."""

    async def scene() -> None:
        async with Operator(tmp_path, patience_s=0.2) as operator:
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            await pod.sync(request(seq=1))
            streams = pod.sync._streams
            async with Raw(operator) as silent, Raw(operator) as slow:
                slow.writer.write(b"POST /v1/sync HTTP/1.1\r\nhost: k\r\n")
                assert await silent.reader.read() == await slow.reader.read() == b""
            async with Raw(operator) as unfinished:
                found, error = await unfinished.ask(post(b"{", headers="x: y\r\n")[:-1])
                assert (found, error["code"]) == (408, "timeout")
            await pod.sync(request(seq=2))
            assert pod.sync._streams is streams, "a proxy that is known stays"

    run(scene())


def test_a_stop_answers_what_has_been_asked(tmp_path: Path) -> None:
    """A grant that is in the ledger but was not answered is money that nobody can spend for a while."""

    async def scene() -> None:
        async with Operator(tmp_path) as operator:
            pods = [Pod(tmp_path / f"pod-{n}", operator.port, operator.authority.bundle) for n in range(8)]
            await asyncio.gather(*(pod.sync(request(f"i{n}", 1)) for n, pod in enumerate(pods)))
            operator.api.latency_s = 0.0
            asked = [asyncio.create_task(pod.sync(request(f"i{n}", 2))) for n, pod in enumerate(pods)]
            while operator.https.answers[200] == 8:  # noqa: ASYNC110 (the moment between two answers is the test)
                await asyncio.sleep(0)
            await operator.https.stop(2.0)
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            answered = [each for each in outcomes if not isinstance(each, Exception)]
            assert len(answered) == operator.https.answers[200] - 8 > 0
            for error in (SyncUnavailable, OSError):  # the connection has ended; and there is no other
                with pytest.raises(error):
                    await pods[0].sync(request("i0", 3))

    run(scene())


@pytest.mark.parametrize("url", ["http://h:1", "h:8443", "https://", "https://h/path", "https://h:x", ""])
def test_a_url_that_is_none_is_refused_at_the_start(tmp_path: Path, url: str) -> None:
    """A typing error in a Deployment must be told in the pod's log, not be a proxy that never syncs."""
    with pytest.raises(BadUrl):
        HttpsLine(url, tmp_path, tmp_path)
