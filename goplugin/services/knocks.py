"""The broker of a host that multiplexes: the side that dials an id knocks first.

Mirrors knock and listenForKnocks in go-plugin's grpc_broker.go. Host and plugin have one connection, and a new stream
does not say which id it is for. So the side that opens it names the id before, on the broker's stream, and waits for
the answer. Its next stream then belongs to that id.
"""

import contextlib
import functools
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from goplugin import log
from goplugin.address import Address
from goplugin.services import host_pb2
from goplugin.transport import Multiplexed

TIMEOUT = 5.0  # seconds that each side has to pick an id up, or to answer a knock, as in Go
KNOCK_AGAIN = 0.3  # seconds after which a knock that was refused is repeated, once

Outgoing = queue.SimpleQueue[host_pb2.ConnInfo | None]  # what the plugin says on a stream of the broker; None ends it

_log = log.get_logger("goplugin.broker")


def fail(future: Future[Any] | None, error: Exception) -> None:
    """End the future by this error, unless it is done."""
    if future and not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)


class Knocks:
    """Knocks at the host, one knock at a time, and opens where the host knocks. Whoever calls holds the lock."""

    def __init__(self, transport: Multiplexed, lock: threading.RLock, hosts: list[Outgoing]) -> None:
        """hosts: the broker's streams; the first one is used."""
        self._transport, self._lock, self._hosts = transport, lock, hosts
        self._dials: list[tuple[int, Future[Address]]] = []  # which have not knocked yet
        self._knocked: dict[int, Future[Address] | None] = {}  # which the host has not answered, by id; None: given up
        self._refused: set[int] = set()  # ids that the host refused once
        self.served: dict[int, Address] = {}  # by id
        self._early: dict[int, float] = {}  # ids that the host knocks for and we do not serve yet, until when

    def dial(self, service_id: int, future: Future[Address]) -> None:
        """Give the future a socket that leads to the id; ValueError if the host refuses, TimeoutError if it is late."""
        with self._lock:
            self._dials.append((service_id, future))
            if not self._hosts:
                after(TIMEOUT, functools.partial(self._give_up, service_id, future))
            self.go_on()

    def go_on(self) -> None:
        """Knock for the next one, if the one before it has been answered or given up."""
        while self._dials and self._hosts and all(not one or one.done() for one in self._knocked.values()):
            service_id, future = self._dials.pop(0)
            if not future.done():
                self._knocked[service_id] = future
                self._say(service_id, ack=False)
                after(TIMEOUT, functools.partial(self._give_up, service_id, future))

    def serve(self, service_id: int, address: Address) -> None:
        """Let the host in there when it knocks for the id."""
        self.served[service_id] = address
        if self._early.pop(service_id, 0) > time.monotonic():
            self._open(service_id)

    def receive(self, info: host_pb2.ConnInfo) -> None:
        """Take what the host says."""
        service_id = info.service_id
        if info.knock.ack:
            self._answered(service_id, info.knock.error)
        elif info.knock.knock and service_id in self.served:
            self._open(service_id)
        elif info.knock.knock:
            self._early[service_id] = time.monotonic() + TIMEOUT
            after(TIMEOUT, functools.partial(self._expire, service_id))

    def _open(self, service_id: int) -> None:
        with contextlib.suppress(OSError):  # the companion is gone, and the plugin leaves
            self._transport.expect(self.served[service_id])
            self._say(service_id, ack=True)

    def _expire(self, service_id: int) -> None:
        with self._lock:
            if self._early.get(service_id, math.inf) > time.monotonic():
                return  # it is served, or the host has knocked again
            del self._early[service_id]
        _log.warning("the host dialled id %d, and nobody served it within %g s", service_id, TIMEOUT)

    def _say(self, service_id: int, *, ack: bool) -> None:
        knock = host_pb2.ConnInfo.Knock(knock=True, ack=ack)
        for host in self._hosts[:1]:
            host.put(host_pb2.ConnInfo(service_id=service_id, knock=knock))

    def _give_up(self, service_id: int, future: Future[Address]) -> None:
        with self._lock:
            if self._knocked.get(service_id) is future:
                self._knocked[service_id] = None
            fail(future, TimeoutError(f"cannot dial id {service_id}: the host did not open it within {TIMEOUT:g} s"))
            self.go_on()

    def _answered(self, service_id: int, error: str) -> None:
        if service_id not in self._knocked:
            return  # nobody knocked there
        future = self._knocked.pop(service_id)
        try:
            if error and future and service_id not in self._refused:
                # A host in Go that begins to serve the id at this moment may answer "no listener" (grpc_broker.go,
                # Accept: it listens for knocks first).
                self._refused.add(service_id)
                threading.Timer(KNOCK_AGAIN, self.dial, (service_id, future)).start()
            elif error:
                raise ValueError(f"cannot dial id {service_id}: {error}")
            else:
                # Even if nobody waits any more: otherwise the host takes our next stream, another id's, for this one.
                address = self._transport.open()
                if future and not future.done() and future.set_running_or_notify_cancel():
                    future.set_result(address)
                else:
                    self._transport.close(address)
        except (OSError, RuntimeError, ValueError) as problem:  # RuntimeError: no thread left
            fail(future, problem)
        self.go_on()


_timers = queue.SimpleQueue[tuple[float, Callable[[], None]]]()
_timer_thread: threading.Thread | None = None


def after(seconds: float, function: Callable[[], None]) -> None:
    """Call the function after that time. The time is always the same, so one thread calls them in order."""
    global _timer_thread
    _timers.put((time.monotonic() + seconds, function))
    if not (_timer_thread and _timer_thread.is_alive()):  # not started yet, or the system had no thread left
        _timer_thread = threading.Thread(target=_run_timers, name="broker-timers", daemon=True)
        _timer_thread.start()


def _run_timers() -> None:
    while True:
        due, function = _timers.get()
        time.sleep(max(0.0, due - time.monotonic()))
        function()
