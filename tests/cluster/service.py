"""What a Service does for several replicas, where nothing runs kube-proxy: a port whose connections go to one that listens."""

import contextlib
import itertools
import socket
import threading
from collections.abc import Sequence


class Service:
    """Each new connection goes to the next of these ports that takes it."""

    def __init__(self, port: int, to: Sequence[int]) -> None:
        self._to = itertools.cycle(to)
        self._count = len(to)
        self._listening = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        for _ in range(self._count):
            try:
                server = socket.create_connection(("127.0.0.1", next(self._to)), timeout=2)
            except OSError:
                continue
            server.settimeout(None)
            threading.Thread(target=_copy, args=(server, client), daemon=True).start()
            _copy(client, server)
            return
        client.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
