"""Knocks: how the broker dials if the host multiplexes. Mirrors knock and listenForKnocks in grpc_broker.go.

Host and plugin have one connection, and a new stream does not say which id it is for. So the side that dials names the
id on the broker's stream first: it knocks. When the other side has answered, the next stream belongs to that id.
"""

import contextlib
import queue
import threading
import weakref
from concurrent.futures import Future
from typing import Any

from goplugin.address import Address
from goplugin.services import host_pb2
from goplugin.transport import Multiplexed

TIMEOUT = 5.0  # seconds for each side to use an id, or to answer a knock, as in Go
KNOCK_AGAIN = 0.3  # seconds until a refused knock is repeated, once


class Knocks:
    """Knocks at the host, one knock at a time, and answers the host's knocks. Callers hold the lock."""

    def __init__(self, transport: Multiplexed, broker: Any) -> None:
        """broker: the BrokerBase that owns this. Knocks use the stream of its first host."""
        self._transport, self._broker, self._lock = transport, broker, broker.lock
        self.unsaid = queue.SimpleQueue[Any]()  # messages for the first stream, until it is open
        self._dials: list[tuple[int, Future[Address]]] = []  # dials that have not knocked yet
        self._knocked: list[tuple[int, Future[Address]]] = []  # knocks without an answer; if done, the dial gave up
        self._refused = weakref.WeakSet[Future[Address]]()  # dials that the host refused once
        self.served: dict[int, Address] = {}  # grpc's addresses, by id

    def dial(self, service_id: int, future: Future[Address]) -> None:
        """Set the future to an address that leads to the id. ValueError if the host refuses, TimeoutError if late."""
        with self._lock:
            self._dials.append((service_id, future))
            future.add_done_callback(lambda future: self._go_on())
            self._go_on()

    def _go_on(self) -> None:
        """Knock for the next dial, if the one before it was answered or gave up."""
        with self._lock:
            while self._dials and all(one.done() for _, one in self._knocked):
                service_id, future = self._dials.pop(0)
                if not future.done():
                    late = f"cannot dial id {service_id}: the host did not open it within {TIMEOUT:g} s"
                    self._broker.fail_later(future, TimeoutError(late))
                    self._knocked.append((service_id, future))
                    self._say(service_id, ack=False)

    def serve(self, service_id: int, address: Address) -> None:
        """Serve the id at this address of grpc: the host's next stream after a knock leads there."""
        self.served[service_id] = address
        if self._broker.infos.pop(service_id, None):  # the host has knocked already
            self._open(service_id)

    def receive(self, info: host_pb2.ConnInfo) -> None:
        """Handle a message of the host: a knock, or the answer to ours."""
        service_id = info.service_id
        if info.knock.ack:
            self._answered(service_id, info.knock.error)
        elif info.knock.knock and service_id in self.served:
            self._open(service_id)
        elif info.knock.knock:
            self._broker.keep(info)

    def _open(self, service_id: int) -> None:
        with contextlib.suppress(OSError):  # the companion died, so the plugin leaves
            self._transport.expect(self.served[service_id])
            self._say(service_id, ack=True)

    def _say(self, service_id: int, *, ack: bool) -> None:
        knock = host_pb2.ConnInfo.Knock(knock=True, ack=ack)
        outgoing = self._broker.hosts[0] if self._broker.hosts else self.unsaid
        outgoing.put(host_pb2.ConnInfo(service_id=service_id, knock=knock))

    def _answered(self, service_id: int, error: str) -> None:
        # Dials that still wait come first: two dials of one id may have knocked, and the host may keep only one knock.
        future = min((one for number, one in self._knocked if number == service_id), key=Future.done, default=None)
        if not future:
            return  # we did not knock for this id
        self._knocked.remove((service_id, future))
        try:
            if error and not future.done() and future not in self._refused:
                # A host in Go that begins to serve the id at this moment may answer "no listener" (grpc_broker.go,
                # Accept: it listens for knocks first).
                self._refused.add(future)
                # This thread is a daemon, as the thread that receives is: Python's exit does not wait for it.
                threading.Timer(KNOCK_AGAIN, self.dial, (service_id, future)).start()
            elif error:
                raise ValueError(f"cannot dial id {service_id}: {error}")
            else:
                # Open a stream even if the dial gave up: otherwise the host takes our next stream, for another id, for
                # this one.
                address = self._transport.open()
                if not future.done() and future.set_running_or_notify_cancel():
                    future.set_result(address)
                else:
                    self._transport.close(address)
        except (OSError, RuntimeError, ValueError) as problem:  # RuntimeError: no thread left
            self._broker.fail(future, problem)
        self._go_on()
