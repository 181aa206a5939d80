"""goplugin for grpc.aio: handlers may be `async def`, and Plugin takes a grpc.aio.server.

Write `import goplugin.aio` before all other imports.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import grpc

from goplugin import log
from goplugin.address import Address
from goplugin.aio.interceptor import Interceptor, submit
from goplugin.lifetime import GRACE
from goplugin.plugin import PluginBase
from goplugin.services.accepted import AcceptedBase
from goplugin.services.broker import BrokerBase
from goplugin.workers import Workers

__all__ = ["Accepted", "Broker", "Plugin"]

_log = log.get_logger("goplugin")


class Broker(BrokerBase):
    """Serves the host under an id (accept), and connects to what the host serves under an id (dial).

    See goplugin/services/broker.py.
    """

    _loop: asyncio.AbstractEventLoop

    async def dial(self, service_id: int) -> grpc.aio.Channel:
        """Return a channel to what the host serves under the id. Close it, or use it in an `async with`.

        Wait up to 5 s until the host says where it serves. TimeoutError if it does not, or if the id was dialled
        before. ValueError if the id is not a uint32, the host refuses, or its address is malformed. OSError if the
        system cannot resolve the host's address, or the companion died. RuntimeError if the plugin is leaving.
        If the host multiplexes, dial the id again for each connection: such a channel connects only once.
        """
        self._loop = asyncio.get_running_loop()
        waiting = self._address_of(service_id)
        try:
            address = await asyncio.wrap_future(waiting)
        except asyncio.CancelledError:
            if not waiting.cancel() and not waiting.exception():
                self._give_back(service_id, waiting.result())  # it arrived just before the cancellation
            raise
        address = await _in_thread(self._reach, service_id, address, undo=self._transport.close_dialled)
        channel: grpc.aio.Channel = self._connect(address, grpc.aio)
        if self._knocks:
            channel.get_state(try_to_connect=True)  # a host in Go closes a stream that stays silent for 2 minutes
        return channel

    async def accept(self, service_id: int, add_to_server: Callable[[grpc.aio.Server], None]) -> "Accepted":
        """Serve the host under the id, until you close the result or the plugin leaves.

        add_to_server(server): adds services to a grpc.aio.Server.
        ValueError if the id is not a uint32 or is accepted already. TimeoutError if no host opens the broker's stream
        within 5 s. OSError or ValueError if the plugin cannot listen. RuntimeError if the plugin is leaving.
        """
        accepted = Accepted(self, self._transport, service_id)
        try:
            await asyncio.wrap_future(self._reserve(accepted))
            server = grpc.aio.server(**self._server_arguments)
            add_to_server(server)
            address = await _in_thread(accepted.listen, server, _Stoppable(server), undo=lambda _: accepted.stop())
            await server.start()
        except BaseException:
            await accepted.close()
            raise
        self.announce(service_id, address)
        return accepted

    def _close_channel(self, channel: Any) -> None:
        submit(channel.close(), self._loop)


class Accepted(AcceptedBase, contextlib.AbstractAsyncContextManager["Accepted"]):
    """A server under an id. Close it when the host no longer needs it, or use it in an `async with`."""

    async def close(self) -> None:
        """Stop serving, and cancel calls in flight. Closing again does nothing."""
        if server := self.stop():
            await asyncio.wrap_future(server.stopped)

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it."""
        await self.close()


class Plugin(PluginBase):
    """Everything that go-plugin gives a Go plugin, for your grpc.aio.server.

    Create one per process, in the main thread, before or after the event loop starts.

    version: the app protocol version that host and plugin agreed on.
    broker: for further connections to and from the host.
    server_arguments: for grpc.aio.server(): a thread pool for `def` handlers, options and interceptors.
    """

    _grpc, _pool, _await = "grpc.aio", "migration_thread_pool", "await "
    _make_broker = Broker

    broker: Broker
    _loop: asyncio.AbstractEventLoop | None = None
    _thread = 0  # of the loop

    def _make_interceptor(self, threads: Workers) -> Interceptor:
        for name in ("asyncio", "grpc"):  # these loggers log each loop and each call at debug
            logger = logging.getLogger(name)
            logger.setLevel(logger.level or logging.INFO)
        return Interceptor(threads)

    async def listen(self, server: Any) -> str:
        """Do what goplugin.Plugin.listen does, for a grpc.aio.server."""
        if task := asyncio.current_task():
            task.add_done_callback(_log_failure)
        if not self._server and _is_running(server):
            raise RuntimeError("call `await plugin.listen(server)` instead of server.start(), which it does itself")
        address = self._before_start(server)
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._left: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._interceptor.workers = self.server_arguments[self._pool]
        self._stdio.never_wait_in(self._thread)
        await server.start()
        return self._after_start(_Stoppable(server), address)

    async def wait(self) -> None:
        """Serve until the host calls Shutdown, SIGTERM or SIGHUP arrives, or the host is gone. Then return.

        Calls in flight have 1.5 s to finish. After that, the rest of main() has 0.3 s.
        """
        self._before_wait()
        await asyncio.shield(asyncio.wrap_future(self._left))

    def _leave(self, reason: str) -> None:
        # grpc.aio warns if a stream, such as the broker's, is still in use just after the server has stopped.
        logging.getLogger("grpc._cython.cygrpc").setLevel(logging.ERROR)
        super()._leave(reason)
        if self._server:
            self._left.set_result(None)

    def _drain(self, end: float) -> None:
        super()._drain(end)
        if self._loop and not self._interceptor.drain(self._loop, max(0.0, end - time.monotonic())):
            frame = sys._current_frames().get(self._thread)
            _log.error(
                "the event loop did not run for the last %g s: a handler blocks it; the stacktrace shows where",
                GRACE,
                extra={"stacktrace": "".join(traceback.format_stack(frame)) if frame else ""},
            )


class _Stoppable:
    """A grpc.aio.Server that any thread can stop, like a grpc.Server."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server, self._loop = server, asyncio.get_running_loop()

    def stop(self, grace: float | None) -> "_Stoppable":
        """Begin to stop the server. grace: seconds for calls in flight; None cancels them."""
        self.stopped = submit(self._server.stop(grace), self._loop)
        return self

    def wait(self, timeout: float) -> None:
        """Wait until the server has stopped, at most timeout seconds."""
        concurrent.futures.wait([self.stopped], timeout)


async def _in_thread(function: Callable[..., Address], *arguments: Any, undo: Callable[[Address], object]) -> Address:
    """Run the function in a thread, since it may wait for the companion. If we are cancelled, undo(its result)."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        running.add_done_callback(lambda done: done.exception() or undo(done.result()))
        raise


def _log_failure(main: asyncio.Task[Any]) -> None:
    """Log at once what main() raised: asyncio.run() then cancels the running server's calls, and grpcio may crash.

    We take the task that awaits listen() for main().
    """
    error = None if main.cancelled() else main.exception()
    if error and not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)


def _is_running(server: Any) -> bool:
    try:
        return bool(server._server.is_running())  # private; a second start() silently does nothing
    except AttributeError:
        return False
