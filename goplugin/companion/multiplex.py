"""All connections of host and plugin over one, as streams of yamux; mirrors go-plugin's internal/grpcmux.

host --- one connection ---> Multiplexer --- a stream, TLS or plain ---> Relay --- Unix socket ---> grpc
"""

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from goplugin.companion.loop import READ, WRITE
from goplugin.companion.yamux import Session, Stream, YamuxError

KNOCK_TIMEOUT = 5.0  # seconds that the host has to open a stream after a knock

_CHUNK = 256 * 1024  # bytes read at once


class Multiplexer:
    """The host's connection. For relays it is the loop of its streams: it calls back those that can go on."""

    def __init__(
        self,
        loop: Any,
        connection: socket.socket,
        relay: Callable[["Multiplexer", Stream, str], object],
        plain: str,
        ended: Callable[[str], None],
    ) -> None:
        """relay(self, stream, path): passes a stream of the host's on to the Unix socket. plain: the plugin's server.

        ended(reason): called once, when the connection is over; "" if the host closed it.
        """
        self._loop, self._connection, self._relay, self._plain, self._ended = loop, connection, relay, plain, ended
        self._session = Session(self._accept, self._wake)
        self._expected: deque[tuple[str, float]] = deque()  # where the next streams lead, until when
        self._watched: dict[Stream, tuple[int, Callable[[int], object]]] = {}
        self._unsent = memoryview(b"")
        self._is_awake = False
        connection.setblocking(False)
        loop.watch(connection, READ, lambda events: self._receive())

    def watch(self, stream: Stream, events: int, callback: Callable[[int], object]) -> None:
        """Call back whenever the stream is ready for one of the events."""
        self._watched[stream] = (events, callback)
        self._session.changed.add(stream)
        self._wake()

    def forget(self, stream: Stream) -> None:
        """Watch the stream no more."""
        self._watched.pop(stream, None)

    def expect(self, path: str) -> None:
        """Let the next stream of the host's lead to this Unix socket: the host has knocked."""
        self._expected.append((path, time.monotonic() + KNOCK_TIMEOUT))

    def open(self) -> Stream:
        """Open a stream to the host. OSError if the host takes none."""
        return self._session.open()

    def close(self, reason: str = "") -> None:
        """End the connection. A second call does nothing."""
        if self._connection.fileno() < 0:
            return
        self._session.end()
        self._notify()
        with contextlib.suppress(OSError):
            self._connection.send(bytes(self._unsent) + self._session.output())
        self._loop.forget(self._connection)
        self._connection.close()
        self._ended(reason)

    def _accept(self, stream: Stream) -> None:
        while self._expected:
            path, deadline = self._expected.popleft()
            if deadline > time.monotonic():
                self._relay(self, stream, path)
                return
        self._relay(self, stream, self._plain)

    def _receive(self) -> None:
        try:
            data = self._connection.recv(_CHUNK)
            if not data:
                self.close()
                return
            self._session.receive(data)
        except BlockingIOError:  # there was only something to send
            pass
        except (OSError, YamuxError) as error:
            self.close(str(error))
            return
        self._run()

    def _wake(self) -> None:
        """Have _run called soon: there is something to send, or a stream may go on."""
        if not self._is_awake:
            self._is_awake = True
            self._loop.soon(self._run)

    def _run(self) -> None:
        if self._connection.fileno() < 0:
            return
        self._is_awake = True  # what follows needs no other call
        self._notify()
        try:
            self._send()
        except OSError as error:
            self.close(str(error))
            return
        self._is_awake = False
        # Reads no more while much waits to be sent: a host that sends and never reads costs no memory.
        events = READ * self._session.has_room() | WRITE * bool(self._unsent)
        self._loop.watch(self._connection, events, lambda events: self._receive())

    def _notify(self) -> None:
        while self._session.changed:
            stream = self._session.changed.pop()
            events, callback = self._watched.get(stream, (0, None))
            ready = events & (READ * stream.readable | WRITE * stream.writable)
            if callback and ready:
                callback(ready)
                self._session.changed.add(stream)  # it may go on further

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._unsent or self._session.has_output():
                self._unsent = self._unsent or memoryview(self._session.output())
                self._unsent = self._unsent[self._connection.send(self._unsent) :]
                self._notify()
