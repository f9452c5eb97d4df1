"""The way from the proxies to the operator, as a Service and a bad network would have it. `scene` runs one a schedule.

It listens where the proxies think that the operator is, and passes bytes on to one of the operators that run. TLS goes through
untouched. Loss on a TCP connection is a delay, or its end: that is what is done to it.
"""

import asyncio
import contextlib
import random
import socket
import struct

_CHUNK = 65_536


class Relay:
    """`async with Relay(chance) as relay`; `targets` may change at any time."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.targets: list[int] = []
        """Ports of this machine: the endpoints of the Service."""
        self.noise = 0.0
        """How likely each piece on its way is delayed, and a tenth as likely its connection's end."""
        self.open = asyncio.Event()
        """While it is not set nothing passes; what is on its way waits, as behind a cable that was pulled."""
        self.open.set()
        self._passing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in tuple(self._passing):
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        try:
            if self.targets:
                await self._join(reader, writer, self._chance.choice(self.targets))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._passing.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        there, out = await asyncio.open_connection("127.0.0.1", port)
        ways = [asyncio.create_task(self._pass(reader, out)), asyncio.create_task(self._pass(there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            _reset(out)
            _reset(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self.noise and self._chance.random() < self.noise:
                    if self._chance.random() < 0.1:
                        return
                    await asyncio.sleep(self._chance.choice((0.02, 0.2, 1.0, 2.5)))
                await self.open.wait()
                writer.write(data)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
