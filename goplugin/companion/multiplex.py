"""Carries all connections between host and plugin over one, as yamux streams. Mirrors go-plugin's internal/grpcmux.

host --- one connection ---> Multiplexer --- a stream, TLS or plain ---> Relay --- private hop ---> grpc
"""

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

from goplugin.address import Address
from goplugin.companion.loop import READ, WRITE, Loop
from goplugin.companion.yamux import Session, Stream, YamuxError

KNOCK_TIMEOUT = 60.0  # seconds for the host to open a stream after a knock; a debugger may stop the host

_CHUNK = 256 * 1024  # bytes read at once


class Multiplexer:
    """The host's one connection. Relays use it as the loop for its streams: it calls back when a stream is ready."""

    def __init__(self, loop: Loop, connection: socket.socket, plain: Address, relay: Any, ended: Any) -> None:
        """connection: a non-blocking socket.

        relay(plain, stream, loop=self): called for each stream that the host opens, with the address of grpc for it.
        plain: that address, unless `expect` has named another one.
        ended(reason): called when the connection has ended. reason: "" if the host closed it or died.
        """
        self._loop, self._connection, self._plain, self._relay, self._ended = loop, connection, plain, relay, ended
        self._session = Session(self._opened, self._wake)
        self._expected: list[tuple[Address, float]] = []  # where the next streams lead, and until when
        self._watched: dict[Stream, tuple[int, Callable[[int], object]]] = {}
        self._unsent = memoryview(b"")
        self._events = 0  # the events that the loop watches for
        self.open = self._session.open
        self._watch_connection(READ)

    def watch(self, stream: Stream, events: int, callback: Callable[[int], object]) -> None:
        """Call callback(events) whenever the stream is ready for one of the events."""
        self._watched[stream] = (events, callback)
        self._session.changed.add(stream)
        self._wake()

    def forget(self, stream: Stream) -> None:
        """Stop watching the stream."""
        self._watched.pop(stream, None)

    def expect(self, plain: Address) -> None:
        """Let the host's next stream lead to this address of grpc: the host has knocked.

        The host knocks again only after it has opened that stream or given up. So the newest knock goes first. The last
        100 are kept.
        """
        self._expected = [(plain, time.monotonic() + KNOCK_TIMEOUT), *self._expected[:99]]

    def _opened(self, stream: Stream) -> None:
        self._expected = [one for one in self._expected if one[1] > time.monotonic()]
        self._relay(self._expected.pop(0)[0] if self._expected else self._plain, stream, loop=self)

    def _wake(self) -> None:
        self._watch_connection(self._events | WRITE)  # it is writable, so the loop calls back at once

    def _watch_connection(self, events: int) -> None:
        if events != self._events and self._connection.fileno() >= 0:
            self._events = events
            self._loop.watch(self._connection, events, self._on_ready)

    def _on_ready(self, events: int) -> None:
        try:
            self._go_on(events)
        except (OSError, EOFError) as error:
            self._session.end(violated=isinstance(error, YamuxError))
            self._notify()  # the relays notice that their streams are cut
            with contextlib.suppress(OSError):
                self._connection.send(bytes(self._unsent) + self._session.output())
            self._loop.forget(self._connection)
            self._connection.close()
            self._ended("" if isinstance(error, ConnectionError) else str(error))

    def _go_on(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            if events != WRITE:
                data = self._connection.recv(_CHUNK)
                if not data:
                    raise EOFError
                self._session.receive(data)
        self._notify()
        with contextlib.suppress(BlockingIOError):
            while unsent := self._unsent or memoryview(self._session.output()):
                self._unsent = unsent
                self._unsent = unsent[self._connection.send(unsent) :]
                self._notify()
        # Stop reading while much is unsent: a host that sends and never reads must not cost memory.
        self._watch_connection(READ * self._session.has_room() | WRITE * bool(self._unsent))

    def _notify(self) -> None:
        while self._session.changed:
            stream = self._session.changed.pop()
            events, callback = self._watched.get(stream, (0, None))
            if callback and events & (READ * stream.readable() | WRITE * stream.writable()):
                callback(events)
                self._session.changed.add(stream)  # it may still be ready
