"""All connections under AutoMTLS or of a host that multiplexes, and where they come in.

host --- TLS, TCP or Unix socket ---> Relay --- Unix socket in a folder of mode 0700 ---> grpc.Server
grpc.Channel --- Unix socket in that folder ---> Relay --- TLS ---> what the host serves under a broker's id

If the host multiplexes, a stream of its one connection is in the place of the outer socket (see multiplex.py).
"""

import errno
import functools
import os
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

from goplugin import log
from goplugin.address import Address, listening_socket
from goplugin.companion.loop import READ, Loop
from goplugin.companion.relay import Relay, begin_connect, check_peer, prepare
from goplugin.companion.tls import Contexts
from goplugin.environment import Environment

HANDSHAKE_TIMEOUT = 10.0  # seconds
# Beyond these the oldest is refused: the host's own take milliseconds, a stranger's may never end.
MOST_HANDSHAKES = 256
MOST_REFUSALS = 10  # of a minute that are logged

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
        self._environment = environment
        self._expires = False  # there is a timer
        self._refused: list[float] = []  # when callers were, of those that were logged within the last minute
        self._handshakes: dict[Relay, float] = {}  # with their deadlines, oldest first
        # A connection has two descriptors in the end. Those that strangers never finish must leave enough for others.
        self._most_handshakes = min(MOST_HANDSHAKES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._listeners: dict[str, socket.socket] = {}  # by address
        self._folders: dict[str, os.stat_result] = {}  # of grpc's sockets, by path
        self._multiplexer: Any = None
        self._streams: dict[str, Any] = {}  # to which grpc has not connected yet, by path

    def listen(self, plain: str) -> Address:
        """Let callers in where the host finds us, and on to the Unix socket `plain`; return where that is.

        If the host multiplexes and is connected, return `plain` itself, for `expect`.
        """
        folder = os.path.dirname(plain)
        self._folders[folder] = os.lstat(folder)
        if self._multiplexer:
            return Address("unix", plain)
        listener, address = listening_socket(self._environment, self._path)
        accept = functools.partial(self._multiplex, listener) if self._environment.multiplex else self._relay
        self._accept_from(listener, address.address, functools.partial(accept, plain))
        return address

    def _relay(self, plain: str, outer: Any, loop: Any = None) -> None:
        Relay(self, plain, outer, loop=loop)

    def _multiplex(self, listener: socket.socket, plain: str, connection: socket.socket) -> None:
        """Take the host's first connection as the only one. Its streams lead to `plain` unless the host has knocked."""
        from goplugin.companion.multiplex import Multiplexer

        if self._multiplexer:  # another one that came at the same moment
            connection.close()
            return
        self.loop.forget(listener)
        self._multiplexer = Multiplexer(self.loop, connection, plain, self._relay, self._ended)

    def expect(self, plain: str) -> None:
        """Let the host's next stream lead to the Unix socket `plain`."""
        self._multiplexer.expect(plain)

    def open(self) -> str:
        """Open a stream to the host, and return the path of a Unix socket that leads to it, once."""

        def accept(inner: socket.socket) -> None:
            stream = self._streams.pop(plain, None)
            self.close("unix", plain)
            if stream:
                Relay(self, "a stream of the host's", stream, inner, self._multiplexer)
            else:  # somebody was faster
                inner.close()

        stream = self._multiplexer.open()  # first: if the rest fails, the host must not take the next one for it
        plain = self._listen_to_grpc(accept)
        self._streams[plain] = stream
        return plain

    def dial(self, host_network: str, host_address: str) -> str:
        """Return the path of a Unix socket that leads to the host's address."""

        def accept(inner: socket.socket) -> None:
            try:
                outer = begin_connect(Address(host_network, host_address))
            except (OSError, ValueError) as error:
                _log.warning("cannot dial %s: %s", host_address, error)
                inner.close()
            else:
                Relay(self, host_address, outer, inner)

        return self._listen_to_grpc(accept)

    def connect_to_grpc(self, plain: str) -> socket.socket:
        """Return a socket that connects to grpc's. OSError if it is not grpc's any more, or no descriptor is left."""
        folder = os.path.dirname(plain)
        if not os.path.samestat(os.lstat(folder), self._folders[folder]):
            raise PermissionError(errno.EPERM, "somebody has put another folder in the place of ours")
        connection: socket.socket = self._with_descriptors(lambda: begin_connect(Address("unix", plain)))
        try:
            check_peer(connection)
        except OSError:
            connection.close()
            raise
        return connection

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

    def begin_handshake(self, relay: Relay) -> None:
        """Note that this one has to finish its handshake in time."""
        if not self._expires:
            self._expires = True
            self.loop.call_later(HANDSHAKE_TIMEOUT, self._expire)
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
                self.loop.call_later(left, self._expire)
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

    def _accept_from(self, listener: socket.socket, address: str, accept: Callable[[socket.socket], object]) -> None:
        listener.setblocking(False)
        self._listeners[address] = listener
        self._listen(listener, accept)

    def _listen(self, listener: socket.socket, accept: Callable[[socket.socket], object]) -> None:
        if listener.fileno() >= 0:
            self.loop.watch(listener, READ, functools.partial(self._accept, listener, accept))

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
                self.loop.forget(listener)
                self.loop.call_later(0.1, functools.partial(self._listen, listener, accept))
                return
            try:
                prepare(connection)
                accept(connection)
            except OSError:  # the caller has left
                connection.close()
