"""plugin.GRPCBroker: more connections between host and plugin, either way; mirrors go-plugin's grpc_broker.go.

One side gets an id from next_id() and passes it to the other in a call of the plugin's own service. The side that
serves under the id listens, and sends its address as a ConnInfo on the broker's stream. The other side waits for that
and dials.
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
from goplugin.services.knocks import TIMEOUT, Knocks, Outgoing, after, fail
from goplugin.transport import Multiplexed, Transport

_log = log.get_logger("goplugin.broker")


class BrokerBase(host_pb2_grpc.GRPCBrokerServicer):
    """What Broker and goplugin.aio's Broker share: all but how to wait, and the kind of servers and channels."""

    def __init__(self, transport: Transport, server_arguments: dict[str, Any]) -> None:
        """server_arguments: for the server behind each accepted id."""
        self._transport, self._server_arguments = transport, server_arguments
        self._lock = threading.RLock()  # guards the following
        self._hosts: list[Outgoing] = []
        self._infos: dict[int, tuple[Address, float]] = {}  # by id, with the time until which they can be dialled
        self._waiting: list[tuple[int | None, str, Future[Any]]] = []  # see _wait
        self._accepted: dict[int, AcceptedBase] = {}
        self._channels: weakref.WeakSet[Any] = weakref.WeakSet()
        self._last_id = 0
        self._knocks = Knocks(transport, self._lock, self._hosts) if isinstance(transport, Multiplexed) else None
        self._closed = False

    def next_id(self) -> int:
        """Return an id for accept that is new in this plugin. The host counts its own ids."""
        with self._lock:
            self._last_id = self._last_id % 0xFFFFFFFF + 1
            return self._last_id

    def _address_of(self, service_id: int) -> Future[Address]:
        """Return where the host serves the id. An id can be dialled once. ValueError if it is not a uint32."""
        host_pb2.ConnInfo(service_id=service_id)
        with self._lock:
            future = self._wait(service_id, f"cannot dial id {service_id}")
            if self._knocks:
                self._knocks.dial(service_id, future)
                return future
            if not future.done() and self._known(service_id):
                future.set_result(self._infos.pop(service_id)[0])
            late = f"the host did not say within {TIMEOUT:g} s where it serves id {service_id}"
            error = TimeoutError(f"{late} (it does so once: an id can be dialled once)")
            after(TIMEOUT, functools.partial(fail, future, error, self._lock))
        return future

    def _reserve(self, accepted: "AcceptedBase") -> Future[None]:
        """Take the id, and return what is done once a host is connected. ValueError if the id cannot be accepted."""
        host_pb2.ConnInfo(service_id=accepted.service_id)
        with self._lock:
            if accepted.service_id in self._accepted:
                raise ValueError(f"id {accepted.service_id} is accepted already")
            self._accepted[accepted.service_id] = accepted
            future = self._wait(None, f"cannot accept id {accepted.service_id}")
            if not future.done() and self._hosts:
                future.set_result(None)
            error = TimeoutError(f"cannot accept id {accepted.service_id}: no host opened the broker's stream")
            after(TIMEOUT, functools.partial(fail, future, error, self._lock))
        return future

    def _give_back(self, service_id: int, address: Address) -> None:
        """Take back the address that a dial got just as it was cancelled."""
        if self._knocks:
            self._transport.close(address)
        else:
            self._receive(host_pb2.ConnInfo(service_id=service_id, network=address.network, address=address.address))

    def _wait(self, service_id: int | None, cannot: str) -> Future[Any]:
        """Return what will have the host's address for the id; for None, what is done once a host is connected."""
        future: Future[Any] = Future()
        if self._closed:
            future.set_exception(RuntimeError(f"{cannot}: the plugin is leaving"))
        self._waiting = [one for one in self._waiting if not one[-1].done()]
        self._waiting.append((service_id, cannot, future))
        return future

    def _waiting_for(self, service_id: int | None) -> Iterator[Future[Any]]:
        for wanted, _, future in self._waiting:
            if wanted == service_id and not future.done() and future.set_running_or_notify_cancel():
                yield future

    def _connect(self, service_id: int, address: Address, insecure_channel: Callable[..., Any]) -> Any:
        """Return a channel to the host's address, closed at the end at the latest."""
        # No proxy, whatever the environment says: the host is on this machine.
        options = (*self._server_arguments["options"], ("grpc.enable_http_proxy", 0))
        try:
            channel = self._transport.dial(address, options, insecure_channel)
        except ValueError as error:
            raise ValueError(f"cannot dial id {service_id}: {error}") from error
        with self._lock:
            self._channels.add(channel)
        return channel

    def _known(self, service_id: int) -> bool:
        return service_id in self._infos and self._infos[service_id][1] > time.monotonic()

    def announce(self, service_id: int, address: Address) -> None:
        """Tell the hosts where we serve the id."""
        with self._lock:
            if self._knocks:
                self._knocks.serve(service_id, address)
                return
            for outgoing in self._hosts:
                outgoing.put(host_pb2.ConnInfo(service_id=service_id, network=address.network, address=address.address))

    def forget(self, accepted: "AcceptedBase") -> None:
        """Remove it from what must be closed at the end: it is closed."""
        with self._lock:
            if self._accepted.get(accepted.service_id) is accepted:
                del self._accepted[accepted.service_id]
                if self._knocks:
                    self._knocks.served.pop(accepted.service_id, None)

    def StartStream(
        self, request_iterator: Iterator[host_pb2.ConnInfo], context: grpc.ServicerContext
    ) -> Iterator[host_pb2.ConnInfo]:
        """Exchange ConnInfos with one host, as long as it is connected: ids that it accepts come in, ours go out."""
        outgoing: Outgoing = queue.SimpleQueue()
        with self._lock:
            if self._knocks and not self._hosts:
                outgoing, self._knocks.unsaid = self._knocks.unsaid, outgoing
            self._hosts.append(outgoing)
            for future in self._waiting_for(None):
                future.set_result(None)

        def receive() -> None:
            try:
                for info in request_iterator:
                    self._receive(info)
            except Exception as error:  # noqa: BLE001 grpc.aio raises this and that
                if not isinstance(error, grpc.RpcError):  # so such a stream ends, when the host or the plugin leaves
                    _log.debug("the broker's stream has ended: %s", error)
            finally:
                outgoing.put(None)

        threading.Thread(target=receive, name="broker", daemon=True).start()
        try:
            while info := outgoing.get():
                yield info
        finally:
            with self._lock:
                self._hosts.remove(outgoing)

    def _receive(self, info: host_pb2.ConnInfo) -> None:
        service_id, address = info.service_id, Address(info.network, info.address)
        with self._lock:
            if self._knocks:
                self._knocks.receive(info)
                return
            again = self._known(service_id)
            future = None if again else next(self._waiting_for(service_id), None)
            if future:
                future.set_result(address)
            elif not again:
                self._infos[service_id] = (address, time.monotonic() + TIMEOUT)
        if again:  # two hosts use the same id; as in Go, the first one is kept
            _log.warning("the host serves id %d while another one does: not reachable", service_id)
        elif not future:
            after(TIMEOUT, self._expire)

    def _expire(self) -> None:
        """Forget ids that nobody dialled in time, as the host does too."""
        with self._lock:
            late = [service_id for service_id in self._infos if not self._known(service_id)]
            for service_id in late:
                del self._infos[service_id]
        for service_id in late:
            _log.warning("the host serves id %d, and nobody dialled it within %g s", service_id, TIMEOUT)

    def end_streams(self) -> None:
        """End the broker's streams. Connections stay, for the calls in flight."""
        with self._lock:
            for outgoing in self._hosts:
                outgoing.put(None)

    def close(self) -> None:
        """Close all connections, and refuse new ones."""
        with self._lock:
            self._closed = True
            for _, cannot, future in self._waiting:
                fail(future, RuntimeError(f"{cannot}: the plugin is leaving"), self._lock)
            accepted, channels = list(self._accepted.values()), list(self._channels)
        for one in accepted:
            one.stop()
        for channel in channels:
            self._close_channel(channel)

    def _close_channel(self, channel: Any) -> None:
        channel.close()


class Broker(BrokerBase):
    """Serves the host under an id (accept), and reaches what the host serves under an id (dial)."""

    def dial(self, service_id: int) -> grpc.Channel:
        """Return a channel to what the host serves under the id. Close it, or use it in a `with`.

        Waits 5 s for the host to say where: TimeoutError if it does not, or if the id was dialled before.
        ValueError if the id is no uint32, or the host refuses or names no address. RuntimeError when the plugin leaves.
        If the host multiplexes, an id can be dialled again, and must be: a channel does not connect a second time.
        """
        address = self._address_of(service_id).result()
        channel: grpc.Channel = self._connect(service_id, address, grpc.insecure_channel)
        if self._knocks:  # a host in Go closes a stream on which nothing comes for 2 minutes
            ready = grpc.channel_ready_future(channel)
            with contextlib.suppress(grpc.FutureTimeoutError):
                ready.result(TIMEOUT)
            ready.cancel()  # otherwise its thread keeps the channel
        return channel

    def accept(self, service_id: int, add_to_server: Callable[[grpc.Server], None]) -> "Accepted":
        """Serve the host under the id, until the result is closed or the plugin leaves.

        add_to_server: adds the services to the grpc.Server that it is given.
        ValueError if the id is not a uint32 or is accepted already, TimeoutError if no host opens the broker's stream
        within 5 s, OSError or ValueError if the plugin cannot listen; RuntimeError when it is leaving.
        """
        accepted = Accepted(self, self._transport, service_id)
        try:
            self._reserve(accepted).result()
            first_call = _FirstCall(accepted.note_call)
            interceptors = (first_call, *self._server_arguments["interceptors"])
            server = grpc.server(**{**self._server_arguments, "interceptors": interceptors})
            add_to_server(server)
            address = accepted.listen(server, server)
            server.start()
        except BaseException:
            accepted.close()
            raise
        self.announce(service_id, address)
        return accepted


class AcceptedBase:
    """What Accepted and goplugin.aio's Accepted share."""

    def __init__(self, broker: BrokerBase, transport: Transport, service_id: int) -> None:
        self.service_id = service_id
        self._broker, self._transport = broker, transport
        self._server: Any = None
        self._address: Address | None = None
        self._called = False

    def listen(self, server: Any, stoppable: Any) -> Address:
        """Bind the server, and return where the host finds it. OSError or ValueError if it cannot listen.

        stoppable: whose stop(None), called in any thread, stops the server.
        """
        self._address = self._transport.listen(server)
        self._server = stoppable
        after(TIMEOUT, self._check_called)
        return self._address

    def note_call(self) -> None:
        """Note that the host has called something."""
        self._called = True

    def _check_called(self) -> None:
        if self._server and not self._called:
            _log.warning("the plugin serves id %d, and the host called nothing within %g s", self.service_id, TIMEOUT)

    def stop(self) -> Any:
        """Stop serving, and cancel calls in flight. Return what the server has returned for that."""
        self._broker.forget(self)
        server, self._server = self._server, None
        address, self._address = self._address, None
        stopped = server.stop(None) if server else None
        if address:
            self._transport.close(address)
        return stopped


class Accepted(AcceptedBase, contextlib.AbstractContextManager["Accepted"]):
    """A server under an id. Close it when the host does not need it any more, or use it in a `with`."""

    def close(self) -> None:
        """Stop serving, and cancel calls in flight. A second call does nothing."""
        self.stop()

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""
        self.close()


class _FirstCall(grpc.ServerInterceptor):
    def __init__(self, called: Callable[[], None]) -> None:
        self._called = called

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        self._called()
        return continuation(handler_call_details)
