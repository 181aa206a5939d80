"""Connections under AutoMTLS or of a host that multiplexes: TLS or a stream outside, plain bytes to grpc inside.

host --- TLS, TCP or Unix socket ---> relay --- Unix socket in a folder of mode 0700 ---> grpc.Server
grpc.Channel --- Unix socket in that folder ---> relay --- TLS ---> what the host serves under a broker's id

If the host multiplexes, a stream of its one connection is in the place of the outer socket (see multiplex.py).

Nothing blocks. Each connection holds what its slower side has not taken yet, and reads no more until it has: that is
all the memory that a slow reader costs.
"""

import contextlib
import functools
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from goplugin import log
from goplugin.address import Address, listening_socket
from goplugin.companion.loop import READ, WRITE, Loop
from goplugin.companion.tls import TLS, Contexts, NoTLS, TLSError
from goplugin.environment import Environment

HANDSHAKE_TIMEOUT = 10.0  # seconds
MOST_HANDSHAKES = (
    256  # beyond these the oldest is refused: the host's own take milliseconds, a stranger's may never end
)

_CHUNK = 256 * 1024  # bytes read at once
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, not FIN

_log = log.get_logger("goplugin.companion")


class Relays:
    """Listeners and connections. listen, dial, expect, open and close are commands of the plugin (see process.py)."""

    def __init__(
        self, loop: Loop, contexts: Contexts | None, environment: Environment, path: Callable[[], str], ended: Any
    ) -> None:
        """contexts: None for no TLS. path(): returns a path for a Unix socket that only our user can reach.

        ended(reason): called when the one connection of a host that multiplexes is over.
        """
        self.loop, self.contexts, self._path, self._ended = loop, contexts, path, ended
        self._relay = functools.partial(Relay, self)
        self.handshakes: dict[Relay, float] = {}  # with their deadlines, oldest first
        self._environment = environment
        self._listeners: dict[str, socket.socket] = {}  # by address
        self._multiplexer: Any = None
        self._streams: dict[str, Any] = {}  # to which grpc has not connected yet, by path

    def listen(self, plain: str) -> Address:
        """Let callers in where the host finds us, and on to the Unix socket `plain`; return where that is.

        If the host multiplexes and is connected, return `plain` itself, for `expect`.
        """
        if self._multiplexer:
            return Address("unix", plain)
        listener, address = listening_socket(self._environment, self._path)
        accept = functools.partial(self._multiplex, listener) if self._environment.multiplex else self._relay
        self._accept_from(listener, address.address, functools.partial(accept, plain))
        return address

    def _multiplex(self, listener: socket.socket, plain: str, connection: socket.socket) -> None:
        """Take the host's first connection as the only one. Its streams lead to `plain` unless the host has knocked."""
        from goplugin.companion.multiplex import Multiplexer

        self.loop.forget(listener)
        self._multiplexer = Multiplexer(self.loop, connection, plain, self._relay, self._ended)

    def expect(self, plain: str) -> None:
        """Let the host's next stream lead to the Unix socket `plain`."""
        self._multiplexer.expect(plain)

    def open(self) -> str:
        """Open a stream to the host, and return the path of a Unix socket that leads to it, once."""

        def accept(inner: socket.socket) -> None:
            del self._streams[plain]
            self.close("unix", plain)
            Relay(self, "a stream of the host's", stream, inner, self._multiplexer)

        stream = self._multiplexer.open()  # first: if the rest fails, the host must not take the next one for it
        plain = self._listen_to_grpc(accept)
        self._streams[plain] = stream
        return plain

    def dial(self, host_network: str, host_address: str) -> str:
        """Return the path of a Unix socket that leads to the host's address."""

        def accept(inner: socket.socket) -> None:
            try:
                outer = _begin_connect(Address(host_network, host_address))
            except (OSError, ValueError) as error:
                _log.warning("cannot dial %s: %s", host_address, error)
                inner.close()
            else:
                Relay(self, host_address, outer, inner)

        return self._listen_to_grpc(accept)

    def _listen_to_grpc(self, accept: Callable[[socket.socket], object]) -> str:
        plain = self._path()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(plain)
        listener.listen()
        self._accept_from(listener, plain, accept)
        return plain

    def close(self, network: str, address: str) -> None:
        """Stop listening there; what is connected stays."""
        if listener := self._listeners.pop(address, None):
            self.loop.forget(listener)
            listener.close()
            Address(network, address).remove()
        if stream := self._streams.pop(address, None):
            stream.close()

    def close_all(self) -> None:
        """Leave no socket's file behind."""
        for address in list(self._listeners):
            self.close("unix" if os.path.isabs(address) else "tcp", address)

    def expire(self) -> float | None:
        """Refuse who did not finish the handshake in time; return the seconds until the next deadline."""
        while self.handshakes:
            oldest, deadline = next(iter(self.handshakes.items()))
            left = deadline - time.monotonic()
            if left > 0 and len(self.handshakes) <= MOST_HANDSHAKES:
                return left
            oldest.refuse("it did not finish the TLS handshake")
        return None

    def _accept_from(self, listener: socket.socket, address: str, accept: Callable[[socket.socket], object]) -> None:
        listener.setblocking(False)

        def ready(events: int) -> None:
            try:
                connection = listener.accept()[0]
                _prepare(connection)
                accept(connection)
            except (BlockingIOError, ConnectionError):
                pass  # the caller has left
            except OSError as error:  # no descriptor left
                if self.handshakes:
                    next(iter(self.handshakes)).refuse(str(error))
                else:
                    time.sleep(0.1)

        self._listeners[address] = listener
        self.loop.watch(listener, READ, ready)


class Relay:
    """One connection: moves bytes between two sockets, with TLS on the outer one, unless there is none."""

    def __init__(self, relays: Relays, address: str, outer: Any, inner: Any = None, loop: Any = None) -> None:
        """inner: grpc's end if grpc dials; then address is the host's. Else the host calls, and address is grpc's.

        outer: a socket that does not block, or a yamux.Stream, with its Multiplexer as loop.
        """
        self._relays, self._outer, self._inner, self._address = relays, outer, inner, address
        self._dials, self._loop = inner is not None, loop or relays.loop
        self._tls = TLS(relays.contexts, dials=self._dials) if relays.contexts else NoTLS()
        self._to_outer, self._to_inner = memoryview(b""), memoryview(b"")  # what the socket has not taken yet
        self._inner_ended = False
        self._events: dict[Any, int] = {}  # what the loops watch for
        relays.handshakes[self] = time.monotonic() + HANDSHAKE_TIMEOUT
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
            _log.warning("refused a caller from %s: %s", peer, reason)
        self._close()

    def _on_outer(self, events: int) -> None:
        try:
            # Not what `events` says: an error must be met as well, and reading or writing meets it.
            if self._events[self._outer] & READ:
                self._to_inner = memoryview(self._tls.receive(self._outer.recv(_CHUNK)))
            if self._tls.established and self in self._relays.handshakes:
                self._begin()
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

    def _begin(self) -> None:
        """The handshake is over: connect to grpc, unless grpc called us."""
        if not self._inner:
            self._inner = _begin_connect(Address("unix", self._address))
        del self._relays.handshakes[self]

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
        if self in self._relays.handshakes:
            self.refuse(error.strerror or str(error))
            return
        for side in (self._outer, self._inner):
            if side:
                with contextlib.suppress(OSError):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close()

    def _close(self) -> None:
        self._relays.handshakes.pop(self, None)
        for side in (self._outer, self._inner):
            if side:
                self._watch(side, 0)
                side.close()


def _prepare(connection: socket.socket) -> None:
    connection.setblocking(False)
    if connection.family == socket.AF_INET:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _begin_connect(address: Address) -> socket.socket:
    """Return a socket that connects to the address, or will say why not. OSError or ValueError if that is known now."""
    where: Any = address.address
    if address.network == "unix":
        connection = socket.socket(socket.AF_UNIX)
    else:
        host, _, port = address.address.rpartition(":")
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        connection = socket.socket(family, kind, protocol)
    _prepare(connection)
    try:
        connection.connect(where)
    except BlockingIOError:
        pass
    except OSError:
        connection.close()
        raise
    return connection
