"""plugin.GRPCBroker: further connections between host and plugin, in either direction. Mirrors grpc_broker.go.

One side gets an id from next_id() and passes it to the other side in a call of the plugin's own service. The side that
serves under the id listens, and sends its address as a ConnInfo on the broker's stream. The other side waits for the
ConnInfo and dials the address.
"""

import contextlib
import functools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import grpc

from goplugin import log
from goplugin.address import Address
from goplugin.services import host_pb2, host_pb2_grpc
from goplugin.services.accepted import Accepted, AcceptedBase
from goplugin.services.knocks import TIMEOUT, Knocks
from goplugin.transport import Multiplexed, Transport

Outgoing = queue.SimpleQueue[host_pb2.ConnInfo | None]  # ConnInfos for one host, on its broker stream; None ends it

_log = log.get_logger("goplugin.broker")


class BrokerBase(host_pb2_grpc.GRPCBrokerServicer):
    """What Broker and goplugin.aio's Broker share: everything but how to wait, and the kind of servers and channels."""

    def __init__(self, transport: Transport, server_arguments: dict[str, Any]) -> None:
        """server_arguments: for the server behind each accepted id."""
        self._transport, self._server_arguments = transport, server_arguments
        self.lock = threading.RLock()  # guards the following
        self.hosts: list[Outgoing] = []
        self.infos: dict[int, host_pb2.ConnInfo] = {}  # ConnInfos from hosts that no dial has used yet, by id
        self._waiting: list[tuple[int | None, str, Future[Any]]] = []  # see _wait
        self._accepted: dict[int, AcceptedBase] = {}
        self._channels: weakref.WeakSet[Any] = weakref.WeakSet()
        self._last_id = 0
        self._knocks = Knocks(transport, self) if isinstance(transport, Multiplexed) else None
        self._timers = queue.SimpleQueue[tuple[float, Callable[[], None]]]()
        self._timer_thread: threading.Thread | None = None
        self._closing = threading.Event()

    def next_id(self) -> int:
        """Return a new id for accept. The host counts its own ids."""
        with self.lock:
            self._last_id = self._last_id % 0xFFFFFFFF + 1
            return self._last_id

    def _address_of(self, service_id: int) -> Future[Address]:
        """Return the future address where the host serves the id. ValueError if the id is not a uint32."""
        host_pb2.ConnInfo(service_id=service_id)
        with self.lock:
            future = self._wait(service_id, f"cannot dial id {service_id}")
            if self._knocks:
                self._knocks.dial(service_id, future)
                return future
            if not future.done() and (info := self.infos.pop(service_id, None)):
                future.set_result(Address(info.network, info.address))
            late = f"the host did not say within {TIMEOUT:g} s where it serves id {service_id}"
            error = TimeoutError(f"{late} (it says so only once, so an id can be dialled only once)")
            self.fail_later(future, error)
        return future

    def _reserve(self, accepted: "AcceptedBase") -> Future[None]:
        """Take the id. Return a future that is done once a host is connected. ValueError if the id is not free."""
        host_pb2.ConnInfo(service_id=accepted.service_id)
        with self.lock:
            if accepted.service_id in self._accepted:
                raise ValueError(f"id {accepted.service_id} is accepted already")
            self._accepted[accepted.service_id] = accepted
            future = self._wait(None, f"cannot accept id {accepted.service_id}")
            if not future.done() and self.hosts:
                future.set_result(None)
            error = TimeoutError(f"cannot accept id {accepted.service_id}: no host opened the broker's stream")
            self.fail_later(future, error)
        return future

    def _give_back(self, service_id: int, address: Address) -> None:
        """Take back an address that arrived just when its dial was cancelled."""
        if self._knocks:
            self._transport.close(address)
        else:
            self._receive(host_pb2.ConnInfo(service_id=service_id, network=address.network, address=address.address))

    def _wait(self, service_id: int | None, cannot: str) -> Future[Any]:
        """Return a future for the host's address of the id; for None, one that is done once a host connects.

        cannot: the beginning of the error's text if the plugin leaves.
        """
        future: Future[Any] = Future()
        if self._closing.is_set():
            future.set_exception(RuntimeError(f"{cannot}: the plugin is leaving"))
        self._waiting = [one for one in self._waiting if not one[-1].done()]
        self._waiting.append((service_id, cannot, future))
        return future

    def _waiting_for(self, service_id: int | None) -> Iterator[Future[Any]]:
        for wanted, _, future in self._waiting:
            if wanted == service_id and not future.done() and future.set_running_or_notify_cancel():
                yield future

    def _reach(self, service_id: int, address: Address) -> Address:
        """Return the address by which grpc reaches this address of the host. This may wait for the companion."""
        try:
            return self._transport.dial(address)
        except (ValueError, OSError) as error:
            raise (ValueError if isinstance(error, ValueError) else OSError)(
                f"cannot dial id {service_id}: {error}"
            ) from error

    def _connect(self, address: Address, grpc_or_aio: Any) -> Any:
        """Return a channel to an address from `_reach`. `close` closes it at the latest."""
        # No proxy, whatever the environment says: the host is on this machine.
        options = (*self._server_arguments["options"], ("grpc.enable_http_proxy", 0))
        channel = self._transport.channel(grpc_or_aio, address, options)
        weakref.finalize(channel, self._transport.close_dialled, address).atexit = False
        with self.lock:
            self._channels.add(channel)
        return channel

    def announce(self, service_id: int, address: Address) -> None:
        """Tell the hosts the address where we serve the id."""
        with self.lock:
            if self._knocks:
                self._knocks.serve(service_id, address)
                return
            for outgoing in self.hosts:
                outgoing.put(host_pb2.ConnInfo(service_id=service_id, network=address.network, address=address.address))

    def forget(self, accepted: "AcceptedBase") -> None:
        """Forget a server that is closed. Its id is free again."""
        with self.lock:
            if self._accepted.get(accepted.service_id) is accepted:
                del self._accepted[accepted.service_id]
                if self._knocks:
                    self._knocks.served.pop(accepted.service_id, None)

    def StartStream(
        self, request_iterator: Iterator[host_pb2.ConnInfo], context: grpc.ServicerContext
    ) -> Iterator[host_pb2.ConnInfo]:
        """Exchange ConnInfos with one host while it is connected: for ids that it serves come in, for ours go out."""
        outgoing: Outgoing = queue.SimpleQueue()
        with self.lock:
            if self._knocks and not self.hosts:
                outgoing, self._knocks.unsaid = self._knocks.unsaid, outgoing
            self.hosts.append(outgoing)
            for future in self._waiting_for(None):
                future.set_result(None)

        def receive() -> None:
            try:
                for info in request_iterator:
                    self._receive(info)
            except Exception as error:  # noqa: BLE001 grpc.aio raises various kinds
                if not isinstance(error, grpc.RpcError):  # RpcError is normal when the host or the plugin leaves
                    _log.debug("the broker's stream has ended: %s", error)
            finally:
                outgoing.put(None)

        threading.Thread(target=receive, name="broker", daemon=True).start()
        try:
            while info := outgoing.get():
                yield info
        finally:
            with self.lock:
                self.hosts.remove(outgoing)

    def _receive(self, info: host_pb2.ConnInfo) -> None:
        with self.lock:
            if self._knocks:
                self._knocks.receive(info)
                return
            again = info.service_id in self.infos
            if future := next(self._waiting_for(info.service_id), None):
                future.set_result(Address(info.network, info.address))
            elif not again:
                self.keep(info)
        if again:  # two hosts use the same id; as in Go, the first one counts
            _log.warning("a host serves id %d, but another host serves that id already: ignored", info.service_id)

    def keep(self, info: host_pb2.ConnInfo) -> None:
        """Keep a ConnInfo until an accept or a dial needs it, at most for TIMEOUT, as the host does too."""
        self.infos[info.service_id] = info
        self.call_later(functools.partial(self._expire, info))

    def _expire(self, info: host_pb2.ConnInfo) -> None:
        with self.lock:
            if self.infos.get(info.service_id) is not info:
                return
            del self.infos[info.service_id]
        late = "dialled id %d, but nobody served it" if info.knock.knock else "serves id %d, but nobody dialled it"
        _log.warning(f"the host {late} within %g s", info.service_id, TIMEOUT)

    def end_streams(self) -> None:
        """End the broker's streams. Connections stay for the calls in flight."""
        with self.lock:
            for outgoing in self.hosts:
                outgoing.put(None)

    def close(self) -> None:
        """Close all connections, and refuse new ones."""
        with self.lock:
            self._closing.set()
            self._timers.put((0.0, self._closing.set))  # lets their thread end
            for _, cannot, future in self._waiting:
                self.fail(future, RuntimeError(f"{cannot}: the plugin is leaving"))
            accepted, channels = list(self._accepted.values()), list(self._channels)
        for one in accepted:
            one.stop()
        for channel in channels:
            self._close_channel(channel)

    def _close_channel(self, channel: Any) -> None:
        channel.close()

    def fail(self, future: Future[Any], error: Exception) -> None:
        """Fail the future with this error, unless it is done."""
        with self.lock:
            if not future.done() and future.set_running_or_notify_cancel():
                future.set_exception(error)

    def fail_later(self, future: Future[Any], error: Exception) -> None:
        """Fail the future with this error after TIMEOUT, unless it is done by then."""
        self.call_later(functools.partial(self.fail, future, error))

    def call_later(self, function: Callable[[], None]) -> None:
        """Call the function after TIMEOUT. All functions wait equally long, so one thread calls them in order."""
        self._timers.put((time.monotonic() + TIMEOUT, function))
        if not (self._timer_thread and self._timer_thread.is_alive()):  # not yet, or the system had no thread left
            self._timer_thread = threading.Thread(target=self._run_timers, name="broker-timers", daemon=True)
            self._timer_thread.start()

    def _run_timers(self) -> None:
        while not self._closing.is_set():
            due, function = self._timers.get()
            if not self._closing.wait(max(0.0, due - time.monotonic())):
                function()


class Broker(BrokerBase):
    """Serves the host under an id (accept), and connects to what the host serves under an id (dial)."""

    def dial(self, service_id: int) -> grpc.Channel:
        """Return a channel to what the host serves under the id. Close it, or use it in a `with`.

        Wait up to 5 s until the host says where it serves. TimeoutError if it does not, or if the id was dialled
        before. ValueError if the id is not a uint32, the host refuses, or its address is malformed. OSError if the
        system cannot resolve the host's address, or the companion died. RuntimeError if the plugin is leaving.
        If the host multiplexes, dial the id again for each connection: such a channel connects only once.
        """
        address = self._address_of(service_id).result()
        channel: grpc.Channel = self._connect(self._reach(service_id, address), grpc)
        if self._knocks:  # a host in Go closes a stream that stays silent for 2 minutes
            ready = grpc.channel_ready_future(channel)
            with contextlib.suppress(grpc.FutureTimeoutError):
                ready.result(TIMEOUT)
            ready.cancel()  # otherwise its thread keeps the channel alive
        return channel

    def accept(self, service_id: int, add_to_server: Callable[[grpc.Server], None]) -> "Accepted":
        """Serve the host under the id, until you close the result or the plugin leaves.

        add_to_server(server): adds services to a grpc.Server.
        ValueError if the id is not a uint32 or is accepted already. TimeoutError if no host opens the broker's stream
        within 5 s. OSError or ValueError if the plugin cannot listen. RuntimeError if the plugin is leaving.
        """
        accepted = Accepted(self, self._transport, service_id)
        try:
            self._reserve(accepted).result()
            server = grpc.server(**self._server_arguments)
            add_to_server(server)
            address = accepted.listen(server, server)
            server.start()
        except BaseException:
            accepted.close()
            raise
        self.announce(service_id, address)
        return accepted
