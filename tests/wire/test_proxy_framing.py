"""HTTP as it should not be: smuggling, sizes, slowness, pipelining. What one client sends must never become another's
request."""

import asyncio
import json

import pytest

from stepdown.proxy.wire import Limits
from tests.wire.proxy_world import Scripted, World, hello, plain, request, route, run

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: proxy\r\n"
BODY = json.dumps(hello()).encode()
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
QUICK = Limits(headers_s=0.2, body_idle_s=0.2, body_total_s=0.6, keep_alive_s=0.2, linger_s=0.2)


def sized(body: bytes = BODY, more: bytes = b"", length: bytes | None = None) -> bytes:
    return POST + more + b"Content-Length: %b\r\n\r\n%b" % (length or b"%d" % len(body), body)


SMUGGLING: list[tuple[str, bytes, int]] = [
    ("CL+TE", POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("TE+CL", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400),
    ("two lengths", POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    ("one length twice", POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400),
    ("a list of lengths", sized(length=b"2, 2"), 400),
    ("a signed length", sized(length=b"+2"), 400),
    ("a negative length", sized(length=b"-1"), 400),
    ("a length beyond 64 bits", sized(length=b"99999999999999999999"), 400),
    ("an empty length", POST + b"Content-Length: \r\n\r\n{}", 400),
    ("TE identity", POST + b"Transfer-Encoding: identity\r\n\r\n", 400),
    ("TE gzip, chunked", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    ("TE chunked, gzip", POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
    ("TE twice", POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("TE with a tab in front", POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    ("TE in HTTP/1.0", b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("a folded line", POST + b"X-A: a\r\n b\r\nContent-Length: 2\r\n\r\n{}", 400),
    ("a space before the colon", POST + b"Content-Length : 2\r\n\r\n{}", 400),
    ("a bare line feed", POST + b"X-A: a\nContent-Length: 2\r\n\r\n{}", 400),
    ("bare line feeds only", b"POST / HTTP/1.1\nHost: a\nContent-Length: 2\n\n{}", 400),
    ("a bare carriage return", POST + b"X-A: a\rb\r\nContent-Length: 2\r\n\r\n{}", 400),
    ("NUL in a header", POST + b"X-A: a\x00b\r\nContent-Length: 2\r\n\r\n{}", 400),
    ("no name", POST + b": a\r\nContent-Length: 2\r\n\r\n{}", 400),
    ("two hosts", POST + b"Host: other\r\nContent-Length: 2\r\n\r\n{}", 400),
    ("no host", b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 400),
    ("two keys", sized(more=b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"), 400),
    ("a space in the path", b"GET /healthz x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("HTTP/2 without asking", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("HTTP/2.0 in the request line", b"GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    ("an upgrade", b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", 400),
    ("a tunnel", b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 400),
    ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ("chunk: hexadecimal with a prefix", CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n", 400),
    ("chunk: a size beyond 64 bits", CHUNKED + b"fffffffffffffffff\r\n{}", 400),
    ("chunk: a space behind the size", CHUNKED + b"2 \r\n{}\r\n0\r\n\r\n", 400),
    ("chunk: a bare line feed", CHUNKED + b"2\n{}\r\n0\r\n\r\n", 400),
    ("chunk: longer than it says", CHUNKED + b"2\r\n{}x\r\n0\r\n\r\n", 400),
    ("chunk: a line feed behind the data", CHUNKED + b"2\r\n{}\n0\r\n\r\n", 400),
    ("an encoded body", sized(more=b"Content-Encoding: gzip\r\n"), 415),
    ("an unknown expectation", sized(more=b"Expect: 200-ok\r\n"), 417),
]


def test_what_smuggling_is_made_of_is_refused_and_ends_the_connection() -> None:
    """Behind a load balancer that reads such a request otherwise, one client's bytes would become another's request."""

    async def scene() -> None:
        async with World() as world:
            for name, data, status in SMUGGLING:
                async with world.client() as client:
                    client.send(data + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
                    answer = await client.answer()
                    assert answer.status == status, name
                    assert answer.error["message"], name
                    assert answer.headers["connection"] == "close", name
                    assert await client.ended() == b"", name
            assert world.sim.requests == 0

    run(scene())


def test_sizes_are_bounded() -> None:
    """One client could fill the proxy's memory."""

    async def scene() -> None:
        async with World(fleet={"max_body_bytes": 10_000, "max_header_bytes": 4_000}) as world:
            long_header = b"X-Long: " + b"a" * 5_000 + b"\r\n"
            long_body = b'{"x":"' + b"a" * 20_000 + b'"}'
            for name, data, status in (
                ("a long header", sized(more=long_header), 431),
                ("many headers", sized(more=b"X-A: a\r\n" * 600), 431),
                ("a long path", b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
                ("a long body", sized(long_body), 413),
                ("a length that says so", sized(b"", length=b"10001"), 413),
                ("a long body in chunks", CHUNKED + b"4e20\r\n" + long_body[:20_000] + b"\r\n", 413),
            ):
                async with world.client() as client:
                    client.send(data)
                    answer = await client.answer()
                    assert answer.status == status, name
                    assert answer.error["type"] == "invalid_request_error", name
                    await client.ended()
            async with world.client() as client:  # in small pieces, without an end
                client.send(POST)
                for _ in range(60):
                    client.send(b"X-A: " + b"a" * 100 + b"\r\n")
                    await asyncio.sleep(0)
                assert (await client.answer()).status == 431
            async with world.client() as client:  # chunks that are all framing
                client.send(CHUNKED + b"1;" + b"a" * 3_000)
                await asyncio.sleep(0.01)
                client.send(b"a" * 3_000)
                assert (await client.answer()).status == 400

    run(scene())


@pytest.mark.parametrize(
    ("begin", "status"),
    [(b"", 0), (b"POST /v1/chat", 408), (POST, 408), (sized(BODY[:20], length=b"500"), 408), (CHUNKED + b"ff\r\nabc", 408)],
    ids=("nothing", "half a line", "half a head", "half a body", "half a chunk"),
)
def test_a_request_that_never_ends_is_not_waited_for(begin: bytes, status: int) -> None:
    """A client that opens connections and says nothing more would hold them all (slowloris)."""

    async def scene() -> None:
        async with World(limits=QUICK) as world, world.client() as client:
            client.send(begin)
            if status:
                answer = await client.answer()
                assert (answer.status, answer.error["code"]) == (status, "request_timeout")
            assert await client.ended() == b""

    run(scene())


def test_a_body_that_drips_for_ever_is_not_waited_for() -> None:
    """A byte now and then would keep a connection, and what it holds, for days."""

    async def scene() -> None:
        async with World(limits=QUICK) as world, world.client() as client:
            client.send(sized(b"{", length=b"500"))

            async def drip() -> None:
                while True:
                    client.send(b" ")
                    await asyncio.sleep(0.05)

            dripping = asyncio.create_task(drip())
            assert (await client.answer()).status == 408
            dripping.cancel()

    run(scene())


def test_an_idle_connection_is_closed() -> None:
    """Connections of clients that are long gone would add up."""

    async def scene() -> None:
        async with World(limits=QUICK) as world, world.client() as client:
            assert (await client.get("/healthz")).status == 200
            assert await client.ended() == b""

    run(scene())


def test_bodies_in_chunks_in_pieces_and_after_100_continue() -> None:
    """Clients that stream their bodies (curl, proxies, node) would not be served."""

    async def scene() -> None:
        async with World() as world, world.client() as client:
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:])) + b"0\r\nX-T: t\r\n\r\n"
            client.send(CHUNKED + chunks)
            assert (await client.answer()).status == 200
            for byte in CHUNKED + chunks:
                client.send(bytes([byte]))
                await asyncio.sleep(0)
            assert (await client.answer()).status == 200
            client.send(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(BODY)
            assert (await client.answer()).status == 200

    run(scene())


def test_pipelined_requests_are_answered_in_order() -> None:
    """A client that does not wait would get another request's answer."""

    async def script(heard, writer) -> None:  # type: ignore[no-untyped-def]
        text = heard.body["messages"][0]["content"]
        await asyncio.sleep(0.03 if text == "0" else 0)
        writer.write(plain({"echo": text}))

    async def scene() -> None:
        upstream = Scripted(script)
        async with World(upstream=upstream) as world, world.client() as client:
            count = 40  # more than are read ahead
            many = b"".join(
                request(
                    "POST", "/v1/chat/completions", json.dumps(hello(messages=[{"role": "user", "content": f"{n}"}])).encode()
                )
                for n in range(count)
            )
            client.send(many + request("GET", "/healthz", b""))
            assert [(await client.answer()).json()["echo"] for _ in range(count)] == [str(n) for n in range(count)]
            assert (await client.answer()).json() == {"status": "ok"}

    run(scene())


def test_rubbish_behind_a_request_does_not_take_its_answer() -> None:
    """The answer that was asked for, and paid for, would be lost, or come behind that to the rubbish."""

    async def scene() -> None:
        async with World() as world, world.client() as client:
            client.send(sized() + b"\x00\x01rubbish\r\n\r\n")
            assert (await client.answer()).status == 200
            assert (await client.answer()).status == 400
            assert await client.ended() == b""

    run(scene())


def test_http_1_0_gets_streams_without_chunks() -> None:
    """Old clients would read chunk sizes as text."""

    async def scene() -> None:
        async with World([route(budgets=())]) as world, world.client() as client:
            body = json.dumps(hello(stream=True)).encode()
            client.send(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            status, headers = await client.head()
            assert status == 200 and headers["connection"] == "close" and "transfer-encoding" not in headers
            assert (await client.ended()).endswith(b"data: [DONE]\n\n")

    run(scene())


def test_paths_are_compared_as_they_come() -> None:
    """`/v1/chat/completions/../../metrics`, or a Host that says otherwise, would reach what is not served there."""

    async def scene() -> None:
        async with World() as world, world.client() as client:
            for method, path, status in (
                ("GET", "/healthz", 200),
                ("GET", "/readyz", 200),
                ("GET", "/healthz/", 404),
                ("GET", "//healthz", 404),
                ("GET", "/healthz?x=1", 404),
                ("GET", "/%68ealthz", 404),
                ("GET", "/v1/../healthz", 404),
                ("GET", "http://proxy/healthz", 404),
                ("POST", "/healthz", 405),
                ("GET", "/v1/chat/completions", 405),
                ("POST", "/v1/embeddings", 404),
                ("POST", "/v1/responses", 404),
                ("POST", "/v1/completions", 404),
                ("DELETE", "/v1/models", 405),
                ("HEAD", "/healthz", 405),
            ):
                answer = await client.get(path, {"Host": "localhost/v1/chat/completions"}, method)
                assert answer.status == status, (method, path)
                if method == "HEAD":
                    assert answer.body == b""
                elif status >= 400:
                    assert "GET" in answer.error["message"] or "POST" in answer.error["message"]

    run(scene())


def test_more_connections_than_allowed_are_refused() -> None:
    """Open files would run out, and with them the connections to the upstream."""

    async def scene() -> None:
        async with World(limits=Limits(max_connections=2)) as world, world.client() as one, world.client() as two:
            assert (await one.get("/healthz")).status == (await two.get("/healthz")).status == 200
            async with world.client() as third:
                assert await third.ended() == b""
            assert (await one.get("/healthz")).status == 200

    run(scene())


def test_a_head_that_comes_again_is_read_anew_where_it_differs() -> None:
    """A connection's second request would be served with the first one's key, class, path or length."""

    async def scene() -> None:
        async with World([route(), route("shop/free", budgets=())]) as world, world.client() as client:
            other = json.dumps(hello(model="free", user="x" * 300)).encode()
            short = json.dumps(hello(), separators=(",", ":")).encode()
            for data, status, name in (
                (sized(), 200, "shop/chat"),
                (sized(), 200, "shop/chat"),
                (sized(other), 200, "shop/free"),
                (sized(short), 200, "shop/chat"),
                (sized(b"{"), 400, None),
                (sized(more=b"X-Stepdown-Class: urgent\r\n"), 400, None),
                (sized(b"", length=b"0"), 400, None),
                (sized(), 200, "shop/chat"),
                (sized(length=b"0%d" % len(BODY)), 200, "shop/chat"),
                (sized() + sized(other), 200, "shop/chat"),
                (b"", 200, "shop/free"),
            ):
                client.send(data)
                answer = await client.answer()
                assert (answer.status, answer.headers.get("x-stepdown-route")) == (status, name), data[:90]
            client.send(sized()[:-1])
            await asyncio.sleep(0.01)
            client.send(sized()[-1:])
            assert (await client.answer()).status == 200
            client.send(sized(length=b"%d" % (len(BODY) - 1)))  # a byte too many: the next request begins with it
            assert (await client.answer()).status == 400
            assert (await client.answer()).status == 400
            assert await client.ended() == b""

    run(scene())
