"""One connection under AutoMTLS or of a host that multiplexes: TLS or a stream outside, plain bytes to grpc inside.

Nothing blocks. Each connection holds what its slower side has not taken yet, and reads no more until it has: that is
all the memory that a slow reader costs.
"""

import contextlib
import errno
import os
import socket
import struct
from typing import Any

from goplugin import log
from goplugin.address import Address
from goplugin.companion.loop import READ, WRITE
from goplugin.companion.tls import TLS, NoTLS, TLSError

_CHUNK = 256 * 1024  # bytes read at once
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, not FIN

_log = log.get_logger("goplugin.companion")


class Relay:
    """Moves bytes between two sockets, with TLS on the outer one, unless there is none."""

    def __init__(
        self, relays: Any, address: str, outer: Any, inner: socket.socket | None = None, loop: Any = None
    ) -> None:
        """relays: the Relays that this is one of.

        address: grpc's Unix socket, for the caller `outer`; or the address that was dialled for `inner`.
        outer: a socket or, if the host multiplexes, a stream, which `loop` watches.
        """
        self._relays, self._address, self._outer, self._inner = relays, address, outer, inner
        self._loop = loop or relays.loop  # of the outer side; a stream's has the same methods as Loop
        self._dials = inner is not None
        self._tls: TLS | NoTLS = TLS(relays.contexts, dials=self._dials) if relays.contexts else NoTLS()
        self._to_outer, self._to_inner = memoryview(b""), memoryview(b"")  # what the socket has not taken yet
        self._inner_ended = False
        self._events: dict[Any, int] = {}  # what the loops watch for
        relays.begin_handshake(self)
        self._watch(outer, WRITE if self._dials else READ)  # who dials speaks first, once connected

    def refuse(self, reason: str) -> None:
        """Close without having passed anything on, and log why."""
        if self._dials:
            _log.warning("cannot dial %s: %s", self._address, reason)
        else:
            peer = "its socket"
            with contextlib.suppress(OSError, ValueError, AttributeError):  # it has left; a Unix socket; a stream
                host, port = self._outer.getpeername()
                peer = f"{host}:{port}"
            self._relays.log_refusal(peer, reason)
        self._close()

    def _on_outer(self, events: int) -> None:
        try:
            # Ignore `events`: after an error too we must read or write, which raises the error.
            if self._events[self._outer] & READ:
                self._to_inner = memoryview(self._tls.receive(self._outer.recv(_CHUNK)))
            if self._tls.established and self._relays.is_shaking_hands(self):
                self._relays.end_handshake(self)
                self._inner = self._inner or self._relays.connect_to_grpc(self._address)
        except BlockingIOError:
            pass
        except TLSError as error:
            with contextlib.suppress(OSError):
                self._send_outer()  # the alert, which tells the other side what is wrong
            self.refuse(str(error))
            return
        except OSError as error:
            self._fail(error)
            return
        self._flow()

    def _on_inner(self, events: int) -> None:
        try:
            if self._inner and self._events[self._inner] & READ:
                data = self._inner.recv(_CHUNK)
                self._inner_ended = not data
                self._tls.send(data)
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)
            return
        self._flow()

    def _flow(self) -> None:
        """Send each side what it takes, pass on the end of a side, and watch for what can go on."""
        outer, inner = self._outer, self._inner
        outer_ended, inner_ended = self._tls.ended, self._inner_ended
        try:
            self._send_outer()
            if self._to_inner and inner:
                with contextlib.suppress(BlockingIOError):
                    self._to_inner = self._to_inner[inner.send(self._to_inner) :]
            if inner_ended and not self._to_outer:
                outer.shutdown(socket.SHUT_WR)
            if outer_ended and inner and not self._to_inner:
                inner.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(error)
            return
        if outer_ended and inner_ended and not self._to_outer and not self._to_inner:
            self._close()
            return
        self._watch(outer, (not outer_ended and not self._to_inner) * READ | bool(self._to_outer) * WRITE)
        if inner and self._tls.established:
            self._watch(inner, (not inner_ended and not self._to_outer) * READ | bool(self._to_inner) * WRITE)

    def _send_outer(self) -> None:
        if fresh := self._tls.output():
            self._to_outer = memoryview(bytes(self._to_outer) + fresh if self._to_outer else fresh)
        if self._to_outer:
            with contextlib.suppress(BlockingIOError):
                self._to_outer = self._to_outer[self._outer.send(self._to_outer) :]

    def _watch(self, side: Any, events: int) -> None:
        """Have the loop watch for these events and no more; not even for errors if there are none."""
        if events == self._events.get(side, 0):
            return
        self._events[side] = events
        loop = self._loop if side is self._outer else self._relays.loop
        if events:
            loop.watch(side, events, self._on_outer if side is self._outer else self._on_inner)
        else:
            loop.forget(side)

    def _fail(self, error: OSError) -> None:
        """Close as a connection does that was cut, not ended."""
        if self._relays.is_shaking_hands(self) or not self._inner:
            self.refuse(error.strerror or str(error))
            return
        for side in (self._outer, self._inner):
            with contextlib.suppress(OSError):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close()

    def _close(self) -> None:
        self._relays.end_handshake(self)
        for side in (self._outer, self._inner):
            if side:
                self._watch(side, 0)
                side.close()


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
