"""plugin.GRPCBroker: more connections between host and plugin, either way; mirrors go-plugin's grpc_broker.go.

One side gets an id from next_id() and passes it to the other in a call of the plugin's own service. The side that
serves under the id listens, and sends its address as a ConnInfo on the broker's stream. The other side waits for that
and dials.
"""

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from goplugin import log
from goplugin.address import Address
from goplugin.services import host_pb2, host_pb2_grpc
from goplugin.transport import Transport

TIMEOUT = 5.0  # seconds that each side has to pick an id up, as in Go

_log = log.get_logger("goplugin.broker")

_Outgoing = queue.SimpleQueue[host_pb2.ConnInfo | None]


class Broker(host_pb2_grpc.GRPCBrokerServicer):
    """Serves the host under an id (accept), and reaches what the host serves under an id (dial)."""

    def __init__(self, transport: Transport, server_arguments: dict[str, Any]) -> None:
        """server_arguments: for the grpc.Server behind each accepted id."""
        self._transport, self._server_arguments = transport, server_arguments
        self._changed = threading.Condition()
        self._hosts: list[_Outgoing] = []
        self._infos: dict[int, tuple[Address, float]] = {}  # by id, with the time until which they can be dialled
        self._accepted: dict[int, Accepted] = {}
        self._channels: weakref.WeakSet[grpc.Channel] = weakref.WeakSet()
        self._last_id = 0
        self._closed = False

    def next_id(self) -> int:
        """Return an id for accept that is new in this plugin. The host counts its own ids."""
        with self._changed:
            self._last_id = self._last_id % 0xFFFFFFFF + 1
            return self._last_id

    def dial(self, service_id: int) -> grpc.Channel:
        """Return a channel to what the host serves under the id. Close it, or use it in a `with`.

        Waits 5 s for the host to say where: TimeoutError if it does not, or if the id was dialled before.
        ValueError if the id is not a uint32 or the host sent no valid address. RuntimeError when the plugin leaves.
        """
        host_pb2.ConnInfo(service_id=service_id)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._known(service_id), TIMEOUT)
            if self._closed:
                raise RuntimeError(f"cannot dial id {service_id}: the plugin is leaving")
            if not self._known(service_id):
                raise TimeoutError(
                    f"the host did not say within {TIMEOUT:g} s where it serves id {service_id}"
                    " (it does so once: an id can be dialled once)"
                )
            address, _ = self._infos.pop(service_id)
        # No proxy, whatever the environment says: the host is on this machine.
        options = (*self._server_arguments["options"], ("grpc.enable_http_proxy", 0))
        try:
            channel = self._transport.dial(address, options)
        except ValueError as error:
            raise ValueError(f"cannot dial id {service_id}: {error}") from error
        with self._changed:
            self._channels.add(channel)
        return channel

    def _known(self, service_id: int) -> bool:
        return service_id in self._infos and self._infos[service_id][1] > time.monotonic()

    def accept(self, service_id: int, add_to_server: Callable[[grpc.Server], None]) -> "Accepted":
        """Serve the host under the id, until the result is closed or the plugin leaves.

        add_to_server: adds the services to the grpc.Server that it is given.
        ValueError if the id is not a uint32 or is accepted already, TimeoutError if no host opens the broker's stream
        within 5 s, OSError if the plugin cannot listen; RuntimeError when it is leaving.
        """
        info = host_pb2.ConnInfo(service_id=service_id)
        accepted = Accepted(self, self._transport, service_id)
        with self._changed:
            if service_id in self._accepted:
                raise ValueError(f"id {service_id} is accepted already")
            self._accepted[service_id] = accepted
            self._changed.wait_for(lambda: self._closed or self._hosts, TIMEOUT)
        try:
            if self._closed:
                raise RuntimeError(f"cannot accept id {service_id}: the plugin is leaving")
            if not self._hosts:
                raise TimeoutError(f"cannot accept id {service_id}: no host opened the broker's stream")
            info.network, info.address = accepted.serve(self._server_arguments, add_to_server)
        except BaseException:
            accepted.close()
            raise
        with self._changed:
            for outgoing in self._hosts:
                outgoing.put(info)
        return accepted

    def forget(self, accepted: "Accepted") -> None:
        """Remove it from what must be closed at the end: it is closed."""
        with self._changed:
            if self._accepted.get(accepted.service_id) is accepted:
                del self._accepted[accepted.service_id]

    def StartStream(
        self, request_iterator: Iterator[host_pb2.ConnInfo], context: grpc.ServicerContext
    ) -> Iterator[host_pb2.ConnInfo]:
        """Exchange ConnInfos with one host, as long as it is connected: ids that it accepts come in, ours go out."""
        outgoing: _Outgoing = queue.SimpleQueue()

        def receive() -> None:
            try:
                for info in request_iterator:
                    self._receive(info)
            except grpc.RpcError:
                pass  # such a stream ends when the host is gone or the plugin leaves
            finally:
                outgoing.put(None)

        with self._changed:
            self._hosts.append(outgoing)
            self._changed.notify_all()
        threading.Thread(target=receive, name="broker", daemon=True).start()
        try:
            while info := outgoing.get():
                yield info
        finally:
            with self._changed:
                self._hosts.remove(outgoing)

    def _receive(self, info: host_pb2.ConnInfo) -> None:
        service_id = info.service_id
        with self._changed:
            again = self._known(service_id)
            if not again:
                self._infos[service_id] = (Address(info.network, info.address), time.monotonic() + TIMEOUT)
                self._changed.notify_all()
        if again:  # two hosts use the same id; as in Go, the first one is kept
            _log.warning("the host serves id %d while another one does: not reachable", service_id)
        else:
            _after(TIMEOUT, self._expire)

    def _expire(self) -> None:
        """Forget ids that nobody dialled in time, as the host does too."""
        with self._changed:
            late = [service_id for service_id in self._infos if not self._known(service_id)]
            for service_id in late:
                del self._infos[service_id]
        for service_id in late:
            _log.warning("the host serves id %d, and nobody dialled it within %g s", service_id, TIMEOUT)

    def end_streams(self) -> None:
        """End the broker's streams. Connections stay, for the calls in flight."""
        with self._changed:
            for outgoing in self._hosts:
                outgoing.put(None)

    def close(self) -> None:
        """Close all connections, and refuse new ones."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            accepted, channels = list(self._accepted.values()), list(self._channels)
        for one in accepted:
            one.close()
        for channel in channels:
            channel.close()


class Accepted(contextlib.AbstractContextManager["Accepted"]):
    """A server under an id. Close it when the host does not need it any more, or use it in a `with`."""

    def __init__(self, broker: Broker, transport: Transport, service_id: int) -> None:
        self.service_id = service_id
        self._broker, self._transport = broker, transport
        self._server: grpc.Server | None = None
        self._address: Address | None = None
        self._called = False

    def serve(self, server_arguments: dict[str, Any], add_to_server: Callable[[grpc.Server], None]) -> Address:
        """Start the server, and return where the host finds it. OSError if it cannot listen."""
        interceptors = (_FirstCall(self._note_call), *server_arguments["interceptors"])
        server = grpc.server(**{**server_arguments, "interceptors": interceptors})
        add_to_server(server)
        self._address = self._transport.listen(server)
        self._server = server
        server.start()
        _after(TIMEOUT, self._check_called)
        return self._address

    def _note_call(self) -> None:
        self._called = True

    def _check_called(self) -> None:
        if self._server and not self._called:
            _log.warning("the plugin serves id %d, and the host called nothing within %g s", self.service_id, TIMEOUT)

    def close(self) -> None:
        """Stop serving, and cancel calls in flight. A second call does nothing."""
        self._broker.forget(self)
        server, self._server = self._server, None
        address, self._address = self._address, None
        if server:
            server.stop(None)
        if address:
            self._transport.close(address)

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""
        self.close()


class _FirstCall(grpc.ServerInterceptor):
    def __init__(self, called: Callable[[], None]) -> None:
        self._called = called

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        self._called()
        return continuation(handler_call_details)


_timers = queue.SimpleQueue[tuple[float, Callable[[], None]]]()
_timer_thread: threading.Thread | None = None


def _after(seconds: float, function: Callable[[], None]) -> None:
    """Call the function after that time. The time is always the same, so one thread calls them in order."""
    global _timer_thread
    _timers.put((time.monotonic() + seconds, function))
    if not _timer_thread:
        _timer_thread = threading.Thread(target=_run_timers, name="broker-timers", daemon=True)
        _timer_thread.start()


def _run_timers() -> None:
    while True:
        due, function = _timers.get()
        time.sleep(max(0.0, due - time.monotonic()))
        function()
