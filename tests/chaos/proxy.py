"""TCP proxies that break what they carry: cut it, hold it back, or send it twice.

Threads: `Proxies` runs all of them in one thread of its own, an asyncio loop; its methods may be called from any
thread. The methods of `Proxy` are for that loop alone. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

_READ_BYTES = 1 << 18
_HOST = "127.0.0.1"


class Proxy:
    """Passes bytes between its clients and one server.

    Args:
        port: Of the server, on this machine.

    Attributes:
        struck: Connections that were cut, delayed and duplicated so far, by kind.
    """

    def __init__(self, port: int) -> None:
        self.struck: Counter[str] = Counter()
        self._server_port = port
        self._open: set[_Connection] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._duplicating = False

    async def listen(self) -> int:
        """Begins to accept clients; the port they find it at."""
        self._server = await asyncio.start_server(self._serve, _HOST, 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Accepts nobody any longer, and cuts what is left."""
        self._server.close()
        self._cut()

    def cut(self) -> int:
        """Breaks every connection off, and says how many there were."""
        number = self._cut()
        self.struck["cut"] += number
        return number

    def delay(self) -> int:
        """From now on bytes wait; says how many connections there are."""
        self._passing.clear()
        return len(self._open)

    def duplicate(self) -> int:
        """From now on every new connection is made twice, and the present ones are broken off, so that there are new.

        A copy can only begin where its connection begins: what is said later refers to what was said before.
        """
        self._duplicating = True
        return self._cut()

    def calm(self) -> int:
        """Ends delay and duplication; copies are broken off wherever they are."""
        self._duplicating = False
        self._passing.set()
        for connection in self._open:
            connection.end_copy()
        return len(self._open)

    def count(self, kind: str) -> int:
        """Connections struck so far."""
        return self.struck[kind]

    def _cut(self) -> int:
        for connection in self._open:
            connection.abort()
        number = len(self._open)
        self._open.clear()
        return number

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_connection(_HOST, self._server_port)
        except OSError:  # the server is down; the client notices as it would without a proxy
            writer.transport.abort()
            return
        connection = _Connection(reader, writer, answers, server)
        if self._duplicating:
            await connection.copy(self._server_port)
        self._open.add(connection)
        try:
            await connection.carry(self)
        finally:
            connection.abort()
            self._open.discard(connection)

    async def wait(self, connection: _Connection) -> None:
        """Returns once bytes may pass."""
        if not self._passing.is_set():
            if not connection.delayed:
                self.struck["delay"] += 1
            connection.delayed = True
            await self._passing.wait()
            connection.delayed = False


class _Connection:
    """A client's connection, the one made for it to the server, and perhaps a copy of that."""

    def __init__(
        self,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._client, self._to_client, self._server, self._to_server = client, to_client, server, to_server
        self._to_copy: asyncio.StreamWriter | None = None
        self._discarding: asyncio.Task[None] | None = None
        self.delayed = False  # whether bytes of it wait

    async def copy(self, port: int) -> None:
        """Connects to the server once more; its answers are read and thrown away."""
        with contextlib.suppress(OSError):
            answers, self._to_copy = await asyncio.open_connection(_HOST, port)
            self._discarding = asyncio.create_task(_discard(answers))

    async def carry(self, proxy: Proxy) -> None:
        """Carries bytes both ways until one side ends."""
        ways = [self._requests(proxy), _answers(self, proxy, self._server, self._to_client)]
        tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def end_copy(self) -> None:
        """Breaks the copy off."""
        if self._to_copy:
            self._to_copy.transport.abort()
            self._to_copy = None

    def abort(self) -> None:
        """Breaks everything off."""
        self.end_copy()
        self._to_client.transport.abort()
        self._to_server.transport.abort()

    async def _requests(self, proxy: Proxy) -> None:
        counted = False
        with contextlib.suppress(OSError):
            while data := await self._client.read(_READ_BYTES):
                await proxy.wait(self)
                self._to_server.write(data)
                # Nobody waits for the copy, so that it can hold nothing up; it lives for some seconds only.
                if self._to_copy and not self._to_copy.is_closing():
                    self._to_copy.write(data)
                    proxy.struck["duplicate"] += not counted
                    counted = True
                await self._to_server.drain()


async def _answers(
    connection: _Connection, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_READ_BYTES):
            await proxy.wait(connection)
            writer.write(data)
            await writer.drain()


async def _discard(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(_READ_BYTES):
            pass


class Proxies:
    """Proxies by the name of their server, in a thread of their own. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._proxies: dict[str, Proxy] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for proxy in self._proxies.values():
            asyncio.run_coroutine_threadsafe(proxy.close(), self._loop).result()
        asyncio.run_coroutine_threadsafe(_end_tasks(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, name: str, port: int) -> int:
        """Puts a proxy before a server; the port of the proxy."""
        self._proxies[name] = proxy = Proxy(port)
        return asyncio.run_coroutine_threadsafe(proxy.listen(), self._loop).result()

    def begin(self, kind: str, name: str) -> int:
        """Begins a `cut`, `delay` or `duplicate`; how many connections the proxy had."""
        return self._call(getattr(self._proxies[name], kind))

    def calm(self, name: str) -> int:
        """Ends whatever goes on."""
        return self._call(self._proxies[name].calm)

    def struck(self, kind: str, name: str) -> int:
        """Connections that faults of a kind have struck so far."""
        return self._call(self._proxies[name].count, kind)

    def _call(self, method: Callable[..., int], *arguments: Any) -> int:
        async def call() -> int:
            return method(*arguments)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()


async def _end_tasks() -> None:
    tasks: Sequence[asyncio.Task[Any]] = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
