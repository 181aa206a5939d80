"""The broker of a host that multiplexes: who dials an id knocks first; mirrors knock and listenForKnocks in go-plugin.

Host and plugin have one connection. A new stream of it does not say which id it is for. So one side says that before,
on the broker's stream, and waits for the answer. Its next stream is that id's then.
"""

import contextlib
import functools
import queue
import threading
import time
from concurrent.futures import Future
from typing import Any

from goplugin import log
from goplugin.address import Address
from goplugin.services import host_pb2
from goplugin.transport import Multiplexed

TIMEOUT = 5.0  # seconds that each side has to pick an id up, or to answer a knock, as in Go

Outgoing = queue.SimpleQueue[host_pb2.ConnInfo | None]  # what the plugin says on a stream of the broker; None ends it


_log = log.get_logger("goplugin.broker")


class Knocks:
    """Knocks at the host's, one at a time, and opens where the host knocks. All but `dial` is called with the lock."""

    def __init__(self, transport: Multiplexed, lock: threading.RLock, hosts: list[Outgoing], after: Any) -> None:
        """hosts: the broker's streams; the first one is used. after(seconds, function): calls it then."""
        self._transport, self._lock, self._hosts, self._after = transport, lock, hosts, after
        self._dials: list[tuple[int, Future[Address], Exception]] = []  # which have not knocked yet
        self._knocked: list[tuple[int, Future[Address]]] = []  # which the host has not answered
        self.served: dict[int, Address] = {}  # by id
        self._early: dict[int, float] = {}  # ids that the host knocks for and we do not serve yet, until when

    def dial(self, service_id: int, future: Future[Address], too_late: Exception) -> None:
        """Give the future a socket that leads to the id, ValueError if the host refuses, or too_late."""
        self._dials.append((service_id, future, too_late))
        if not self._hosts:
            self._after(TIMEOUT, functools.partial(self._give_up, future, too_late))
        self.go_on()

    def go_on(self) -> None:
        """Knock for the next one, if the one before it has been answered or given up."""
        while self._dials and self._hosts and all(future.done() for _, future in self._knocked):
            service_id, future, too_late = self._dials.pop(0)
            if not future.done():
                self._knocked.append((service_id, future))
                self._say(service_id, ack=False)
                self._after(TIMEOUT, functools.partial(self._give_up, future, too_late))

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
        elif service_id in self.served:
            self._open(service_id)
        elif info.knock.knock:
            self._early[service_id] = time.monotonic() + TIMEOUT
            self._after(TIMEOUT, functools.partial(self._expire, service_id))

    def _open(self, service_id: int) -> None:
        with contextlib.suppress(OSError):  # the companion is gone, and the plugin leaves
            self._transport.expect(self.served[service_id])
            self._say(service_id, ack=True)

    def _expire(self, service_id: int) -> None:
        with self._lock:
            late = service_id in self._early and self._early.pop(service_id)
        if late:
            _log.warning("the host dialled id %d, and nobody served it within %g s", service_id, TIMEOUT)

    def _say(self, service_id: int, *, ack: bool) -> None:
        knock = host_pb2.ConnInfo.Knock(knock=True, ack=ack)
        self._hosts[0].put(host_pb2.ConnInfo(service_id=service_id, knock=knock))

    def _give_up(self, future: Future[Address], too_late: Exception) -> None:
        with self._lock:
            if not future.done() and future.set_running_or_notify_cancel():
                future.set_exception(too_late)
            self.go_on()

    def _answered(self, service_id: int, error: str) -> None:
        future = next((future for one, future in self._knocked if one == service_id), None)
        if not future:
            return  # nobody knocked there
        self._knocked.remove((service_id, future))
        try:
            if error:
                raise ValueError(f"cannot dial id {service_id}: {error}")
            # Even if nobody waits for it any more: the host would take the next one, which is another id's, for it.
            address = self._transport.open()
        except (OSError, ValueError) as problem:
            self._give_up(future, problem)
            return
        if future.done() or not future.set_running_or_notify_cancel():
            self._transport.close(address)
        else:
            future.set_result(address)
        self.go_on()
