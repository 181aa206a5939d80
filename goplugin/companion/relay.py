"""One connection under AutoMTLS or of a host that multiplexes: TLS or a stream outside, plain bytes to grpc inside.

Nothing blocks. Each connection holds what its slower side has not taken yet, and reads no more until it has: that is
all the memory that a slow reader costs.
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

    unsent: what the connection has not taken yet. connecting: it is not known yet whether it can be reached.
    """

    def __init__(self, connection: Any, loop: Any, tls: TLS | NoTLS, *, connecting: bool = False) -> None:
        """loop: which watches the connection. A stream's is its multiplexer, with the same methods."""
        self.connection, self.tls, self.connecting = connection, tls, connecting
        self.unsent = memoryview(b"")
        self._loop, self._events = loop, 0

    def receive(self) -> bytes:
        """Return what has come, if we wait for some. TLSError if the other end is refused."""
        if self._events & READ:
            with contextlib.suppress(BlockingIOError):
                return self.tls.receive(self.connection.recv(_CHUNK))
        return b""

    def send(self) -> None:
        """Send what the connection takes."""
        if fresh := self.tls.output():
            self.unsent = memoryview(bytes(self.unsent) + fresh if self.unsent else fresh)
        if self.unsent:
            with contextlib.suppress(BlockingIOError):
                self.unsent = self.unsent[self.connection.send(self.unsent) :]

    def watch(self, events: int, callback: Callable[[int], object]) -> None:
        """Have the loop watch for these events and no more; not even for errors if there are none."""
        if events and events != self._events:
            self._loop.watch(self.connection, events, callback)
        elif events != self._events:
            self._loop.forget(self.connection)
        self._events = events

    def close(self, *, reset: bool) -> None:
        """Close it. reset: as a connection that was cut, not ended."""
        self.watch(0, print)
        if reset:
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.connection.close()


class Relay:
    """Moves bytes between who has called and who is connected to once the caller is known to be the right one."""

    def __init__(self, connections: Any, caller: Side, connect: Callable[[], Side], dials: str = "") -> None:
        """connections: the Connections that this is one of.

        connect(): returns the other side. OSError or ValueError if it is known by then that this fails.
        dials: the host's address, if it is grpc that calls.
        """
        self._connections, self._caller, self._connect, self._dials = connections, caller, connect, dials
        self._other: Side | None = None
        connections.begin_handshake(self)
        self._on_event(caller)

    def refuse(self, reason: str) -> None:
        """Close without having passed anything on, and log why."""
        if self._dials and self._caller.tls.established:
            _log.warning("cannot dial %s: %s", self._dials, reason)
        else:
            peer = "its socket"
            with contextlib.suppress(OSError, ValueError, AttributeError):  # it has left; a Unix socket; a stream
                host, port = self._caller.connection.getpeername()
                peer = f"{host}:{port}"
            self._connections.log_refusal(peer, reason)
        self._close()

    def _on_event(self, side: Side, events: int = 0) -> None:
        """Move what can be moved, whatever the events: after an error too we read or write, which raises the error."""
        side.connecting = False
        ended = side.tls.ended
        try:
            data = side.receive()
            if self._caller.tls.established and not self._other:
                self._connections.end_handshake(self)  # first: to make room for its other side, others are refused
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
                side.send()  # the alert, which tells the other end what is wrong
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
                    # The second time, macOS raises ENOTCONN. If the other end has left, reading tells.
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
    """Have the socket never block or delay. OSError if its other end has left."""
    connection.setblocking(False)
    if connection.family != getattr(socket, "AF_UNIX", None):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def begin_connect(address: Address) -> socket.socket:
    """Return a socket that connects to the address, or will say why not. OSError or ValueError if that is known now.

    A host's name must have been resolved: asking for it would block.
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
    """OSError if another user's process is at the other end of a Unix socket, where the system tells (Linux)."""
    if hasattr(socket, "SO_PEERCRED"):
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            raise PermissionError(errno.EPERM, "another user's process listens in the place of grpc")
