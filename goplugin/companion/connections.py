"""All connections under AutoMTLS or of a host that multiplexes, and where they come in.

host --- TLS, TCP or Unix socket ---> Relay --- private hop (see hop.py) ---> grpc.Server
grpc.Channel --- private hop ---> Relay --- TLS ---> what the host serves under a broker's id

If the host multiplexes, a stream of its one connection is in the place of the outer socket (see multiplex.py).
"""

import errno
import functools
import socket
import time
from collections.abc import Callable
from typing import Any

from goplugin import log
from goplugin.address import Address, listening_socket
from goplugin.companion import system
from goplugin.companion.hop import Hop
from goplugin.companion.loop import READ, Loop
from goplugin.companion.relay import Relay, Side, begin_connect, prepare
from goplugin.companion.tls import TLS, Contexts, NoTLS
from goplugin.environment import Environment

HANDSHAKE_TIMEOUT = 10.0  # seconds
# Beyond these the oldest is refused: the host's own take milliseconds, a stranger's may never end.
MOST_HANDSHAKES = 256
MOST_REFUSALS = 10  # of a minute that are logged

_log = log.get_logger("goplugin.companion")


class Connections:
    """Listeners and connections. hop, listen, dial, expect, open and close are commands of the plugin (process.py)."""

    def __init__(self, loop: Loop, contexts: Contexts | None, environment: Environment, hop: Hop, ended: Any) -> None:
        """contexts: None for no TLS. ended(reason): called when the one connection of a multiplexing host is over."""
        self._loop, self._contexts, self._environment, self._hop, self._ended = loop, contexts, environment, hop, ended
        self._expires = False  # there is a timer
        self._refused: list[float] = []  # when callers were, of those that were logged within the last minute
        self._handshakes: dict[Relay, float] = {}  # with their deadlines, oldest first
        # A connection has two descriptors in the end. Those that strangers never finish must leave enough for others.
        self._most_handshakes = min(MOST_HANDSHAKES, system.descriptor_limit() // 4)
        self._listeners: dict[Address, socket.socket] = {}
        self._multiplexer: Any = None
        self._streams: dict[Address, Any] = {}  # to which grpc has not connected yet

    def hop(self) -> tuple[str, ...]:
        """Return the credentials that grpc needs on the private hop."""
        return self._hop.credentials

    def listen(self, network: str, address: str) -> Address:
        """Let callers in where the host finds us, and on to where grpc listens; return where that is.

        If the host multiplexes and is connected, return grpc's own address, for `expect`.
        """
        plain = Address(network, address)
        self._hop.expect(plain)
        if self._multiplexer:
            return plain
        listener, where = listening_socket(self._environment, self._hop.path)
        accept = functools.partial(self._multiplex, listener) if self._environment.multiplex else self._relay
        self._accept_from(listener, where, functools.partial(accept, plain))
        return where

    def _relay(self, plain: Address, outer: Any, loop: Any = None) -> None:
        def connect() -> Side:
            inner = self._with_descriptors(lambda: self._hop.connect(plain))
            connecting = bool(self._hop.credentials)  # over TCP; a Unix socket is connected at once
            return Side(inner, self._loop, self._hop.tls(dials=True), connecting=connecting)

        Relay(self, Side(outer, loop or self._loop, self._tls(dials=False)), connect)

    def _tls(self, *, dials: bool) -> TLS | NoTLS:
        return TLS(self._contexts, dials=dials) if self._contexts else NoTLS()

    def _multiplex(self, listener: socket.socket, plain: Address, connection: socket.socket) -> None:
        """Take the host's first connection as the only one. Its streams lead to `plain` unless the host has knocked."""
        from goplugin.companion.multiplex import Multiplexer

        if self._multiplexer:  # another one that came at the same moment
            connection.close()
            return
        self._loop.forget(listener)
        self._multiplexer = Multiplexer(self._loop, connection, plain, self._relay, self._ended)

    def expect(self, network: str, address: str) -> None:
        """Let the host's next stream lead there, where grpc listens."""
        self._multiplexer.expect(Address(network, address))

    def open(self) -> Address:
        """Open a stream to the host, and return an address that leads to it, once."""

        def connect() -> Side:
            stream = self._streams.pop(where, None)
            self.close(*where)
            if not stream:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "somebody was faster")
            return Side(stream, self._multiplexer, self._tls(dials=True))

        stream = self._multiplexer.open()  # first: if the rest fails, the host must not take the next one for it
        where = self._listen_to_grpc("a stream of the host's", connect)
        self._streams[where] = stream
        return where

    def dial(self, network: str, address: str) -> Address:
        """Return an address that leads to the host's."""

        def connect() -> Side:
            outer = begin_connect(Address(network, address))
            return Side(outer, self._loop, self._tls(dials=True), connecting=True)

        return self._listen_to_grpc(address, connect)

    def _listen_to_grpc(self, dials: str, connect: Callable[[], Side]) -> Address:
        def accept(inner: socket.socket) -> None:
            Relay(self, Side(inner, self._loop, self._hop.tls(dials=False)), connect, dials)

        listener, where = self._hop.listen()
        self._accept_from(listener, where, accept)
        return where

    def close(self, network: str, address: str) -> None:
        """Stop listening there; what is connected stays."""
        where = Address(network, address)
        if listener := self._listeners.pop(where, None):
            self._loop.forget(listener)
            listener.close()
            where.remove()
        if stream := self._streams.pop(where, None):
            stream.close()

    def close_all(self) -> None:
        """Leave no socket's file behind."""
        for where in list(self._listeners):
            self.close(*where)

    def begin_handshake(self, relay: Relay) -> None:
        """Note that this one has to finish its handshake in time."""
        if not self._expires:
            self._expires = True
            self._loop.call_later(HANDSHAKE_TIMEOUT, self._expire)
        self._handshakes[relay] = time.monotonic() + HANDSHAKE_TIMEOUT
        if len(self._handshakes) > self._most_handshakes:
            self._refuse_oldest("it did not finish the TLS handshake")

    def is_shaking_hands(self, relay: Relay) -> bool:
        """Whether it has not finished its handshake."""
        return relay in self._handshakes

    def end_handshake(self, relay: Relay) -> None:
        """Note that this one has finished, or has been closed."""
        self._handshakes.pop(relay, None)

    def log_refusal(self, peer: str, reason: str) -> None:
        """Log it, at most ten times a minute: any program on this machine can call without limit."""
        now = time.monotonic()
        self._refused = [before for before in self._refused if now - before < 60]
        if len(self._refused) < MOST_REFUSALS:
            self._refused.append(now)
            rest = "; no more are logged in this minute" if len(self._refused) == MOST_REFUSALS else ""
            _log.warning("refused a caller from %s: %s%s", peer, reason, rest)

    def _expire(self) -> None:
        while self._handshakes:
            left = next(iter(self._handshakes.values())) - time.monotonic()
            if left > 0:
                self._loop.call_later(left, self._expire)
                return
            self._refuse_oldest("it did not finish the TLS handshake")
        self._expires = False

    def _refuse_oldest(self, reason: str) -> None:
        next(iter(self._handshakes)).refuse(reason)

    def _with_descriptors(self, function: Callable[[], Any]) -> Any:
        """Call what needs a descriptor; if none is left, refuse the oldest unfinished handshake and try again."""
        while True:
            try:
                return function()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._handshakes:
                    raise
                self._refuse_oldest(str(error))

    def _accept_from(self, listener: socket.socket, where: Address, accept: Callable[[socket.socket], object]) -> None:
        listener.setblocking(False)
        self._listeners[where] = listener
        self._listen(listener, accept)

    def _listen(self, listener: socket.socket, accept: Callable[[socket.socket], object]) -> None:
        if listener.fileno() >= 0:
            self._loop.watch(listener, READ, functools.partial(self._accept, listener, accept))

    def _accept(self, listener: socket.socket, accept: Callable[[socket.socket], object], events: int) -> None:
        """Take many waiting connections at once: the host's must not wait long behind a burst of strangers.

        But not so many that they push out a caller before it could shake hands.
        """
        for _ in range(max(1, self._most_handshakes // 8)):
            if listener.fileno() < 0:
                return  # one of them has closed it
            try:
                connection: socket.socket = self._with_descriptors(listener.accept)[0]
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # no descriptor left, and nobody to refuse for it: look again soon
                self._loop.forget(listener)
                self._loop.call_later(0.1, functools.partial(self._listen, listener, accept))
                return
            try:
                prepare(connection)
                accept(connection)
            except OSError:  # the caller has left
                connection.close()
