"""The broker of a plugin on grpc.aio; see goplugin/services/broker.py."""

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import Any

import grpc

from goplugin.address import Address
from goplugin.aio.calls import submit
from goplugin.services.accepted import AcceptedBase
from goplugin.services.broker import BrokerBase


class Broker(BrokerBase):
    """Serves the host under an id (accept), and reaches what the host serves under an id (dial)."""

    _loop: asyncio.AbstractEventLoop

    async def dial(self, service_id: int) -> grpc.aio.Channel:
        """Return a channel to what the host serves under the id. Close it, or use it in an `async with`.

        Waits 5 s for the host to say where: TimeoutError if it does not, or if the id was dialled before.
        ValueError if the id is not a uint32, or the host refuses or names no address. OSError if the host's address is
        not known to the system, or the companion died. RuntimeError when the plugin is leaving.
        If the host multiplexes, an id can be dialled again, and must be: a channel does not connect a second time.
        """
        self._loop = asyncio.get_running_loop()
        waiting = self._address_of(service_id)
        try:
            address = await asyncio.wrap_future(waiting)
        except asyncio.CancelledError:
            if not waiting.cancel() and not waiting.exception():
                self._give_back(service_id, waiting.result())  # it came at the last moment
            raise
        address = await _in_thread(self._reach, service_id, address, undo=self._transport.close_dialled)
        channel: grpc.aio.Channel = self._connect(address, grpc.aio)
        if self._knocks:
            channel.get_state(try_to_connect=True)  # a host in Go closes a stream on which nothing comes for 2 minutes
        return channel

    async def accept(self, service_id: int, add_to_server: Callable[[grpc.aio.Server], None]) -> "Accepted":
        """Serve the host under the id, until the result is closed or the plugin leaves.

        add_to_server: adds the services to the grpc.aio.Server that it is given.
        ValueError if the id is not a uint32 or is accepted already, TimeoutError if no host opens the broker's stream
        within 5 s, OSError or ValueError if the plugin cannot listen; RuntimeError when it is leaving.
        """
        accepted = Accepted(self, self._transport, service_id)
        try:
            await asyncio.wrap_future(self._reserve(accepted))
            server = grpc.aio.server(**self._server_arguments)
            add_to_server(server)
            address = await _in_thread(accepted.listen, server, Stoppable(server), undo=lambda _: accepted.stop())
            await server.start()
        except BaseException:
            await accepted.close()
            raise
        self.announce(service_id, address)
        return accepted

    def _close_channel(self, channel: Any) -> None:
        submit(channel.close(), self._loop)


class Accepted(AcceptedBase, contextlib.AbstractAsyncContextManager["Accepted"]):
    """A server under an id. Close it when the host does not need it any more, or use it in an `async with`."""

    async def close(self) -> None:
        """Stop serving, and cancel calls in flight. A second call does nothing."""
        if server := self.stop():
            await asyncio.wrap_future(server.stopped)

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it."""
        await self.close()


class Stoppable:
    """A grpc.aio.Server that any thread can stop, as a grpc.Server."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server, self._loop = server, asyncio.get_running_loop()

    def stop(self, grace: float | None) -> "Stoppable":
        """Begin to stop it."""
        self.stopped = submit(self._server.stop(grace), self._loop)
        return self

    def wait(self, timeout: float) -> None:
        """Wait until it has stopped."""
        concurrent.futures.wait([self.stopped], timeout)


async def _in_thread(function: Callable[..., Address], *arguments: Any, undo: Callable[[Address], object]) -> Address:
    """Run what may wait for the companion, in a thread; undo(its result) if this is cancelled meanwhile."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        running.add_done_callback(lambda done: done.exception() or undo(done.result()))
        raise
