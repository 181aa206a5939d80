"""An event loop: waits for descriptors and timers, and calls back. It uses poll(), which can wait for errors alone."""

import errno
import heapq
import itertools
import select
import time
from collections.abc import Callable
from typing import Any

READ, WRITE = 1, 4  # POLLIN and POLLOUT on all systems with poll()
ERROR_ONLY = 16  # POLLHUP. Linux always reports POLLHUP and POLLERR, macOS only what is asked for

MOST_SOCKETS = 500  # sockets that _Poll waits for; Windows takes 512


class Loop:
    """Calls each callback with the events that happened, one after the other, in one thread."""

    def __init__(self) -> None:
        self._poll: Any = select.poll() if hasattr(select, "poll") else _Poll()
        self._callbacks: dict[int, Callable[[int], object]] = {}
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()

    def watch(self, fd: Any, events: int, callback: Callable[[int], object]) -> None:
        """Call callback(events) whenever fd, a number or a socket, is ready for one of the events, or has failed."""
        number = _number(fd)
        self._poll.register(number, events)
        self._callbacks[number] = callback

    def forget(self, fd: Any) -> None:
        """Stop watching fd."""
        number = _number(fd)
        if self._callbacks.pop(number, None):
            self._poll.unregister(number)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call the callback once, after so many seconds."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), callback))

    def is_watching(self) -> bool:
        """Whether the loop watches any descriptor."""
        return bool(self._callbacks)

    def run_once(self, timeout: float | None = None) -> None:
        """Wait for events, at most timeout seconds. Call back for each event, and for each timer that is due."""
        if self._timers:
            due = self._timers[0][0] - time.monotonic()
            timeout = due if timeout is None else min(due, timeout)
        for fd, events in self._poll.poll(None if timeout is None else max(0, timeout) * 1000):
            callback = self._callbacks.get(fd)
            if callback:  # an earlier callback may have called forget(fd)
                callback(events)
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()


def _number(fd: Any) -> int:
    return fd if isinstance(fd, int) else int(fd.fileno())


class _Poll:
    """select.poll() for Windows, which has only select.select()."""

    def __init__(self) -> None:
        self._events: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        """Watch a socket for these events, or change them. OSError if there are too many sockets."""
        if fd not in self._events and len(self._events) >= MOST_SOCKETS:
            raise OSError(errno.EMFILE, "too many connections")
        self._events[fd] = events

    def unregister(self, fd: int) -> None:
        """Stop watching a socket."""
        del self._events[fd]

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait for events, at most timeout milliseconds, and return them. None: without limit."""
        seconds = None if timeout is None else timeout / 1000
        reading, writing = ([fd for fd, events in self._events.items() if events & kind] for kind in (READ, WRITE))
        if not reading and not writing:
            time.sleep(seconds or 0)
            return []
        # On Windows, select() reports a failed connect() in its third list.
        readable, writable, failed = select.select(reading, writing, writing, seconds)
        found = {fd: READ * (fd in readable) | WRITE * (fd in writable) for fd in (*readable, *writable)}
        return list((dict.fromkeys(failed, ERROR_ONLY) | found).items())
