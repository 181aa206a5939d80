"""The broker of a host that multiplexes: who dials an id knocks first; mirrors knock and listenForKnocks in go-plugin.

Host and plugin have one connection. A new stream of it does not say what id it is for. So one side says it before, on
the broker's stream, and waits for the other's answer. Then its next stream is that id's.
"""

import functools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from goplugin import log
from goplugin.address import Address
from goplugin.services import host_pb2
from goplugin.transport import Multiplexed

_log = log.get_logger("goplugin.broker")


Outgoing = queue.SimpleQueue[host_pb2.ConnInfo | None]  # what the plugin says on one broker's stream; None ends it


class Knocks:
    """Knocks at the host's, one at a time, and opens where the host knocks."""

    def __init__(
        self,
        transport: Multiplexed,
        lock: threading.RLock,
        after: Callable[[float, Callable[[], None]], None],
        timeout: float,
    ) -> None:
        """lock: guards all futures given to `dial`. after(seconds, function): calls it then. timeout: s, to answer."""
        self._host: Outgoing | None = None  # the broker's stream to it, once it is there
        self._transport, self._lock, self._after, self._timeout = transport, lock, after, timeout
        self._dials: deque[tuple[int, Future[Address], str]] = deque()  # the first one has knocked
        self._given_up: list[int] = []  # ids that the host has not answered for in time
        self._served: dict[int, Address] = {}  # by id
        self._early: dict[int, float] = {}  # ids that the host knocks for and we do not serve yet, until when

    def dial(self, service_id: int, future: Future[Address], too_late: str) -> None:
        """Give the future the address of a stream to the id, or ValueError, or TimeoutError(too_late)."""
        with self._lock:
            self._dials.append((service_id, future, too_late))
            if len(self._dials) == 1:
                self._knock()

    def serve(self, service_id: int, address: Address) -> None:
        """Let the host in there when it knocks for the id."""
        with self._lock:
            self._served[service_id] = address
            if self._early.pop(service_id, 0) > time.monotonic():
                self._open(service_id)

    def stop(self, service_id: int) -> None:
        """Serve the id no more."""
        with self._lock:
            self._served.pop(service_id, None)

    def connected(self, host: Outgoing) -> None:
        """Use this stream of the broker's from now on, if there is none yet."""
        if not self._host:
            self._host = host
            if self._dials:
                self._say_knock()

    def left(self, host: Outgoing) -> None:
        """The stream has ended."""
        if self._host is host:
            self._host = None

    def receive(self, info: host_pb2.ConnInfo) -> None:
        """Take what the host says."""
        with self._lock:
            if info.knock.ack:
                self._answered(info.service_id, info.knock.error)
            elif info.service_id in self._served:
                self._open(info.service_id)
            else:
                self._early[info.service_id] = time.monotonic() + self._timeout
                self._after(self._timeout, self._expire)

    def _open(self, service_id: int) -> None:
        error = ""
        try:
            self._transport.expect(self._served[service_id])
        except (OSError, ValueError) as problem:
            error = str(problem)
        self._say(service_id, host_pb2.ConnInfo.Knock(knock=True, ack=True, error=error))

    def _say(self, service_id: int, knock: host_pb2.ConnInfo.Knock) -> None:
        if self._host:
            self._host.put(host_pb2.ConnInfo(service_id=service_id, knock=knock))

    def _expire(self) -> None:
        with self._lock:
            late = [service_id for service_id, until in self._early.items() if until <= time.monotonic()]
            for service_id in late:
                del self._early[service_id]
        for service_id in late:
            _log.warning("the host dialled id %d, and nobody served it within %g s", service_id, self._timeout)

    def _knock(self) -> None:
        """Knock for the first, if there is one."""
        while self._dials and self._dials[0][1].done():  # cancelled, or the plugin is leaving
            self._dials.popleft()
        if self._dials:
            self._say_knock()
            self._after(self._timeout, functools.partial(self._give_up, self._dials[0][1]))

    def _say_knock(self) -> None:
        self._say(self._dials[0][0], host_pb2.ConnInfo.Knock(knock=True))

    def _give_up(self, future: Future[Address]) -> None:
        with self._lock:
            if self._dials and self._dials[0][1] is future:
                service_id, _, too_late = self._dials.popleft()
                self._given_up.append(service_id)
                if not future.done() and future.set_running_or_notify_cancel():
                    future.set_exception(TimeoutError(too_late))
                self._knock()

    def _answered(self, service_id: int, error: str) -> None:
        if self._dials and self._dials[0][0] == service_id:
            future = self._dials.popleft()[1]
        elif service_id in self._given_up:
            self._given_up.remove(service_id)
            future = Future()
            future.cancel()
        else:
            return  # nobody knocked there
        address = None
        try:
            if (
                not error
            ):  # open one, even if nobody waits for it any more: otherwise the host takes the next one for it
                address = self._transport.open()
        except (OSError, ValueError) as problem:
            error = str(problem)
        if future.done() or not future.set_running_or_notify_cancel():
            if address:
                self._transport.close(address)
        elif address:
            future.set_result(address)
        else:
            future.set_exception(ValueError(f"cannot dial id {service_id}: {error}"))
        self._knock()
