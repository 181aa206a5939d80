"""Listens for connections, and makes a Relay of each (see relay.py), under AutoMTLS or for a host that multiplexes.

| host           | who calls    | the caller's side       | the other side                       |
| -------------- | ------------ | ----------------------- | ------------------------------------ |
| AutoMTLS, tls= | the host     | TLS, TCP or Unix socket | private hop (hop.py) to grpc         |
|                | grpc.Channel | private hop             | TLS, TCP or Unix socket, to the host |
| multiplexes    | the host     | stream (multiplex.py)   | private hop to grpc                  |
|                | grpc.Channel | private hop             | stream to the host                   |

Under AutoMTLS each stream has TLS inside. The private hop is plain; on Windows it is TLS. Without AutoMTLS, tls= and
multiplexing, host and grpc connect directly, and this module is not used.
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
# Unfinished handshakes; beyond these the oldest is refused. The host's take milliseconds, a stranger's may never end.
MOST_HANDSHAKES = 256
MOST_REFUSALS = 10  # refusals that are logged per minute

_log = log.get_logger("goplugin.companion")


class Connections:
    """Listeners and relays. The plugin's commands call hop, listen, dial, expect, open and close (see process.py)."""

    def __init__(self, loop: Loop, contexts: Contexts | None, environment: Environment, hop: Hop, ended: Any) -> None:
        """contexts: None without TLS. ended(reason): called when the one connection of a multiplexing host ends."""
        self._loop, self._contexts, self._environment, self._hop, self._ended = loop, contexts, environment, hop, ended
        self._expires = False  # whether the timer of _expire runs
        self._refused: list[float] = []  # the times of refusals that were logged within the last minute
        self._handshakes: dict[Relay, float] = {}  # relays with unfinished handshakes and their deadlines, oldest first
        # A finished relay has two descriptors. Strangers' unfinished handshakes must leave enough for the host.
        self._most_handshakes = min(MOST_HANDSHAKES, system.descriptor_limit() // 4)
        self._listeners: dict[Address, socket.socket] = {}
        self._multiplexer: Any = None
        self._streams: dict[Address, Any] = {}  # streams to the host that wait for grpc to connect, by address

    def hop(self) -> tuple[str, ...]:
        """Return grpc's credentials for the private hop: key and certificate, and our certificate. () without TLS."""
        return self._hop.credentials

    def listen(self, network: str, address: str) -> Address:
        """Listen for the host, and relay to grpc, which listens at this address. Return the address for the host.

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
            connecting = bool(self._hop.credentials)  # over TCP, connecting takes time
            return Side(inner, self._loop, self._hop.tls(dials=True), connecting=connecting)

        Relay(self, Side(outer, loop or self._loop, self._tls(dials=False)), connect)

    def _tls(self, *, dials: bool) -> TLS | NoTLS:
        return TLS(self._contexts, dials=dials) if self._contexts else NoTLS()

    def _multiplex(self, listener: socket.socket, plain: Address, connection: socket.socket) -> None:
        """Make the host's first connection the only one. Its streams lead to `plain` unless the host has knocked."""
        from goplugin.companion.multiplex import Multiplexer

        if self._multiplexer:  # a second caller came at the same moment
            connection.close()
            return
        self._loop.forget(listener)
        self._multiplexer = Multiplexer(self._loop, connection, plain, self._relay, self._ended)

    def expect(self, network: str, address: str) -> None:
        """Let the host's next stream lead to this address, where grpc listens."""
        self._multiplexer.expect(Address(network, address))

    def open(self) -> Address:
        """Open a stream to the host. Return an address at which grpc can connect to it, once."""

        def connect() -> Side:
            stream = self._streams.pop(where, None)
            self.close(*where)
            if not stream:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "another caller has this stream already")
            return Side(stream, self._multiplexer, self._tls(dials=True))

        stream = self._multiplexer.open()  # first, even if the rest fails: the host takes our next stream for this id
        where = self._listen_to_grpc("a stream of the host's", connect)
        self._streams[where] = stream
        return where

    def dial(self, network: str, address: str) -> Address:
        """Return an address at which grpc can connect to this address of the host."""

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
        """Stop listening at this address. Its connections stay."""
        where = Address(network, address)
        if listener := self._listeners.pop(where, None):
            self._loop.forget(listener)
            listener.close()
            where.remove()
        if stream := self._streams.pop(where, None):
            stream.close()

    def close_all(self) -> None:
        """Stop listening everywhere, and remove the sockets' files."""
        for where in list(self._listeners):
            self.close(*where)

    def begin_handshake(self, relay: Relay) -> None:
        """Remember that this relay must finish its handshake within HANDSHAKE_TIMEOUT."""
        if not self._expires:
            self._expires = True
            self._loop.call_later(HANDSHAKE_TIMEOUT, self._expire)
        self._handshakes[relay] = time.monotonic() + HANDSHAKE_TIMEOUT
        if len(self._handshakes) > self._most_handshakes:
            self._refuse_oldest("it did not finish the TLS handshake")

    def is_shaking_hands(self, relay: Relay) -> bool:
        """Whether this relay has not finished its handshake."""
        return relay in self._handshakes

    def end_handshake(self, relay: Relay) -> None:
        """Forget the deadline: this relay has finished its handshake, or is closed."""
        self._handshakes.pop(relay, None)

    def log_refusal(self, peer: str, reason: str) -> None:
        """Log a refusal, at most MOST_REFUSALS per minute: any program on this machine can call without limit."""
        now = time.monotonic()
        self._refused = [before for before in self._refused if now - before < 60]
        if len(self._refused) < MOST_REFUSALS:
            self._refused.append(now)
            rest = "; further refusals are not logged for a minute" if len(self._refused) == MOST_REFUSALS else ""
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
        """Call a function that opens a descriptor. If none is left, refuse the oldest handshake and retry."""
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
        """Accept many waiting connections at once: the host must not wait long behind a burst of strangers.

        But not so many that they push out a caller before it can shake hands.
        """
        for _ in range(max(1, self._most_handshakes // 8)):
            if listener.fileno() < 0:
                return  # one of the accepted connections has closed the listener
            try:
                connection: socket.socket = self._with_descriptors(listener.accept)[0]
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # no descriptor is left, and there is no handshake to refuse: try again soon
                self._loop.forget(listener)
                self._loop.call_later(0.1, functools.partial(self._listen, listener, accept))
                return
            try:
                prepare(connection)
                accept(connection)
            except OSError:  # the caller has left
                connection.close()
