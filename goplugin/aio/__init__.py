"""The same for grpc.aio: handlers may be `async def`, and Plugin takes a grpc.aio.server.

Write `import goplugin.aio` before all other imports.
"""

import asyncio
import concurrent.futures
import logging
import sys
import threading
import time
import traceback
from typing import Any

from goplugin import log
from goplugin.aio.broker import Accepted, Broker, Stoppable
from goplugin.aio.calls import Calls
from goplugin.lifetime import GRACE
from goplugin.plugin import PluginBase
from goplugin.workers import Workers

__all__ = ["Accepted", "Broker", "Plugin"]

_log = log.get_logger("goplugin")


class Plugin(PluginBase):
    """Everything that go-plugin gives a Go plugin, for your grpc.aio.server.

    A process has one, made in its main thread, before or after its event loop starts.

    version: the app protocol version that host and plugin have in common.
    broker: further connections to and from the host.
    server_arguments: what grpc.aio.server() needs: a thread pool for handlers that are `def`, options, interceptors.
    """

    _grpc, _pool, _await = "grpc.aio", "migration_thread_pool", "await "
    _make_broker = Broker

    broker: Broker
    _loop: asyncio.AbstractEventLoop | None = None
    _thread = 0  # of the loop

    def _make_calls(self, threads: Workers) -> Calls:
        for name in ("asyncio", "grpc"):  # they log each loop and each call at debug
            logger = logging.getLogger(name)
            logger.setLevel(logger.level or logging.INFO)
        return Calls(threads)

    async def listen(self, server: Any) -> str:
        """Do what goplugin.Plugin.listen does, with a grpc.aio.server."""
        if task := asyncio.current_task():
            task.add_done_callback(_log_failure)
        if not self._server and _is_running(server):
            raise RuntimeError("call `await plugin.listen(server)` instead of server.start(), which it does itself")
        address = self._before_start(server)
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._left: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._calls.workers = self.server_arguments[self._pool]
        self._stdio.never_wait_in(self._thread)
        await server.start()
        return self._after_start(Stoppable(server), address)

    async def wait(self) -> None:
        """Serve until the host tells the plugin to leave, or SIGTERM, or the host is gone; then return.

        Calls in flight have 1.5 s to finish. The rest of main() has 0.3 s after that.
        """
        self._before_wait()
        await asyncio.shield(asyncio.wrap_future(self._left))

    def _leave(self, reason: str) -> None:
        super()._leave(reason)
        if self._server:
            self._left.set_result(None)

    def _drain(self, end: float) -> None:
        super()._drain(end)
        if self._loop and not self._calls.drain(self._loop, max(0.0, end - time.monotonic())):
            frame = sys._current_frames().get(self._thread)
            _log.error(
                "the event loop did not run for the last %g s: a handler blocks it; see the stack",
                GRACE,
                extra={"stacktrace": "".join(traceback.format_stack(frame)) if frame else ""},
            )


def _log_failure(main: asyncio.Task[Any]) -> None:
    """Log what main() raised, at once: when asyncio.run() then cancels the calls of a running server, grpcio may crash.

    The task that awaits listen() is taken for main().
    """
    error = None if main.cancelled() else main.exception()
    if error and not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)


def _is_running(server: Any) -> bool:
    try:
        return bool(server._server.is_running())  # private: a second start() does nothing, and says nothing
    except AttributeError:
        return False
