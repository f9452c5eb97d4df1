"""Virtual time for many processes in one: an event loop that never sleeps, and knows which process a task belongs to.

A process that is killed must do nothing more, so all its tasks are found by the context in which they were made.
"""

import asyncio
import contextlib
import contextvars
import resource
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from typing import Any, Protocol, TypeVar

from tests.unit.proxy_money import VirtualLoop

T = TypeVar("T")


class Process:
    """What a SIGKILL ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return asyncio.get_running_loop().create_task(work, context=self.context)

    def run(self, call: Callable[..., T], *args: Any) -> T:
        return self.context.copy().run(call, *args)

    async def end(self) -> None:
        """All that it was doing is over."""
        self.alive = False
        for _ in range(5):
            tasks = [task for task in self.tasks if task is not asyncio.current_task()]
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def current() -> Process | None:
    return _PROCESS.get()


class Dialled(Protocol):
    async def dial(self, factory: Callable[[], Any]) -> tuple[Any, Any]: ...


class ProofLoop(VirtualLoop):
    """Whoever connects to anything is connected to the simulated upstream."""

    upstream: Dialled

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(_task)
        self.failures: list[str] = []
        self.set_exception_handler(self._failed)

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.upstream.dial(protocol_factory)

    def _failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        process = current()
        if process is None or process.alive:
            self.failures.append(f"{context.get('message')}: {context.get('exception')!r}")


def _task(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
    context = more.get("context")
    process = context.get(_PROCESS) if context is not None else current()
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **more)
    if process is not None:
        process.tasks[task] = None
        task.add_done_callback(lambda done: process.tasks.pop(done, None))
    return task


@contextlib.contextmanager
def _up_to(room: int | None) -> Iterator[None]:
    """What is written behind that byte of any file fails, as on a disk that is full."""
    if room is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Disk(Executor):
    """The ledger's thread: what it is given happens at once, and is heard of a little later. In between, a kill may come."""

    def __init__(self, delay_s: Callable[[], float], room: Callable[[], int | None]) -> None:
        """`room`: up to which byte of a file the disk takes anything; None: it is not full."""
        self._delay_s, self._room = delay_s, room
        self._last_s = 0.0
        self.dead = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **more: Any) -> "Future[T]":
        if self.dead:
            raise RuntimeError("the process was killed")
        future: Future[T] = Future()
        loop = asyncio.get_running_loop()
        self._last_s = max(loop.time() + self._delay_s(), self._last_s + 1e-6)
        try:
            with _up_to(self._room()):
                result = fn(*args, **more)
        except Exception as error:  # noqa: BLE001 (as an executor does: it is the caller's)
            loop.call_at(self._last_s, self._settle, future, None, error)
        else:
            loop.call_at(self._last_s, self._settle, future, result, None)
        return future

    def _settle(self, future: "Future[T]", result: Any, error: BaseException | None) -> None:
        if self.dead or future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.dead = True
