"""Relays one connection: it moves bytes between a caller and what the caller wants to reach (see connections.py).

| state       | begins when                            | ends when                                                 |
| ----------- | -------------------------------------- | --------------------------------------------------------- |
| accepted    | a caller connects                      | its TLS handshake is over: connecting; an error or        |
|             |                                        | HANDSHAKE_TIMEOUT: refused. Without TLS it ends at once   |
| connecting  | the caller is established              | the other side is established: relayed; an error or       |
|             |                                        | HANDSHAKE_TIMEOUT: refused                                |
| relayed     | both sides are established             | one end sends its last byte: half closed; an error: reset |
| half closed | the other end gets the end of the data | it ends, too, and all is sent: closed; an error: reset    |

Refused: both sides are closed before a byte has passed, and the reason is logged. The oldest unfinished handshakes are
refused, too, if there are too many (connections.py). Reset: both sides are cut.

Nothing blocks. A relay holds the bytes that its slower side has not taken yet, and meanwhile reads no more from the
faster one. So a slow reader costs at most these bytes of memory.
"""

import contextlib
import errno
import functools
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from goplugin import log
from goplugin.address import Address
from goplugin.companion.loop import READ, WRITE
from goplugin.companion.tls import TLS, NoTLS, TLSError

_CHUNK = 256 * 1024  # bytes read at once
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, not FIN

_log = log.get_logger("goplugin.companion")


class Side:
    """One end of a relay: a socket, or a stream of a host that multiplexes.

    unsent: bytes that the connection has not taken yet. connecting: whether connect() is still in progress.
    """

    def __init__(self, connection: Any, loop: Any, tls: TLS | NoTLS, *, connecting: bool = False) -> None:
        """loop: watches the connection. A stream's loop is its Multiplexer, which has the same methods."""
        self.connection, self.tls, self.connecting = connection, tls, connecting
        self.unsent = memoryview(b"")
        self._loop, self._events = loop, 0

    def receive(self) -> bytes:
        """Return the bytes that have come, if we want to read. TLSError if the other end must be refused."""
        if self._events & READ:
            with contextlib.suppress(BlockingIOError):
                return self.tls.receive(self.connection.recv(_CHUNK))
        return b""

    def send(self) -> None:
        """Send as much as the connection takes."""
        if fresh := self.tls.output():
            self.unsent = memoryview(bytes(self.unsent) + fresh if self.unsent else fresh)
        if self.unsent:
            with contextlib.suppress(BlockingIOError):
                self.unsent = self.unsent[self.connection.send(self.unsent) :]

    def watch(self, events: int, callback: Callable[[int], object]) -> None:
        """Let the loop watch for exactly these events. With 0 it does not even watch for errors."""
        if events and events != self._events:
            self._loop.watch(self.connection, events, callback)
        elif events != self._events:
            self._loop.forget(self.connection)
        self._events = events

    def close(self, *, reset: bool) -> None:
        """Close the connection. reset: tell the other end that it was cut, not ended."""
        self.watch(0, print)
        if reset:
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.connection.close()


class Relay:
    """Connects to the other side once the caller has proved who it is, and then moves bytes between them."""

    def __init__(self, connections: Any, caller: Side, connect: Callable[[], Side], dials: str = "") -> None:
        """connections: the Connections that made this relay.

        connect(): returns the other side. OSError or ValueError if that fails at once.
        dials: the host's address, if grpc is the caller.
        """
        self._connections, self._caller, self._connect, self._dials = connections, caller, connect, dials
        self._other: Side | None = None
        connections.begin_handshake(self)
        self._on_event(caller)

    def refuse(self, reason: str) -> None:
        """Close the relay before any byte has passed, and log why."""
        if self._dials and self._caller.tls.established:
            _log.warning("cannot dial %s: %s", self._dials, reason)
        else:
            peer = "its socket"
            # OSError: the peer has left. ValueError: a Unix socket. AttributeError: a stream.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                host, port = self._caller.connection.getpeername()
                peer = f"{host}:{port}"
            self._connections.log_refusal(peer, reason)
        self._close()

    def _on_event(self, side: Side, events: int = 0) -> None:
        """Move what can be moved, whatever the events. After an error too: reading or writing raises it."""
        side.connecting = False
        ended = side.tls.ended
        try:
            data = side.receive()
            if self._caller.tls.established and not self._other:
                # First: if connect() needs room and the oldest handshake is refused, it must not be this one.
                self._connections.end_handshake(self)
                self._other = self._connect()
                if not self._other.tls.established:
                    self._connections.begin_handshake(self)
            if self._other:
                self._pass_on(data, side, self._other if side is self._caller else self._caller, ends=not ended)
            else:
                side.send()
                self._watch(side, READ | WRITE * bool(side.unsent))
        except TLSError as error:
            with contextlib.suppress(OSError):
                side.send()  # the TLS alert, which tells the other end the reason
            self.refuse(str(error))
        except (OSError, ValueError) as error:
            if not self._other or self._connections.is_shaking_hands(self):
                self.refuse(getattr(error, "strerror", "") or str(error))
            else:
                self._close(reset=True)

    def _pass_on(self, data: bytes, side: Side, other: Side, *, ends: bool) -> None:
        if data:
            other.tls.send(data)
        if side.tls.ended and ends:
            other.tls.send(b"")
        if side.tls.established and other.tls.established:
            self._connections.end_handshake(self)
        both = ((side, other), (other, side))
        for one, another in both:
            if not one.connecting:
                one.send()
                if another.tls.ended and one.tls.established and not one.unsent:
                    # macOS raises ENOTCONN the second time. If the other end has left, reading reports it.
                    with contextlib.suppress(OSError):
                        one.connection.shutdown(socket.SHUT_WR)
        if side.tls.ended and other.tls.ended and not side.unsent and not other.unsent:
            self._close()
            return
        for one, another in both:
            takes = another.tls.established and not another.connecting and not another.unsent
            reads = not one.connecting and not one.tls.ended and (takes or not one.tls.established)
            self._watch(one, READ * reads | WRITE * (one.connecting or bool(one.unsent)))

    def _watch(self, side: Side, events: int) -> None:
        side.watch(events, functools.partial(self._on_event, side))

    def _close(self, *, reset: bool = False) -> None:
        self._connections.end_handshake(self)
        for side in filter(None, (self._caller, self._other)):
            side.close(reset=reset)


def prepare(connection: socket.socket) -> None:
    """Make the socket non-blocking, and send without delay. OSError if its other end has left."""
    connection.setblocking(False)
    if connection.family != getattr(socket, "AF_UNIX", None):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def begin_connect(address: Address) -> socket.socket:
    """Return a socket that begins to connect to the address. OSError or ValueError if that fails at once.

    The address must have an IP address, not a host name: resolving a name would block.
    """
    where: Any = address.address
    if address.network == "unix":
        connection = socket.socket(socket.AF_UNIX)
    else:
        host, _, port = address.address.rpartition(":")
        flags, kind = socket.AI_NUMERICHOST, socket.SOCK_STREAM
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=kind, flags=flags)[0]
        connection = socket.socket(family, kind, protocol)
    try:
        prepare(connection)
        connection.connect(where)
    except BlockingIOError:
        pass
    except OSError:
        connection.close()
        raise
    return connection


def check_peer(connection: socket.socket) -> None:
    """Raise OSError if the other end of a Unix socket is another user's process. Only Linux can tell."""
    if hasattr(socket, "SO_PEERCRED"):
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            raise PermissionError(errno.EPERM, "another user's process listens instead of grpc")
