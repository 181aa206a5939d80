"""What the TLS terminator does all day: accept, check the certificate, and pass bytes on, both ways.

One thread and one selector. Nothing blocks; each connection holds what its slower side has not taken yet, and reads
no more until it has: that is all the memory that a slow reader costs.
"""

import contextlib
import os
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any

from goplugin.automtls import Contexts
from goplugin.listener import Address, give_to_group, listening_socket

HANDSHAKE_TIMEOUT = 10.0  # seconds
MOST_HANDSHAKES = 256  # beyond these the oldest is refused, which says least: the host's own takes milliseconds

_CHUNK = 256 * 1024  # bytes read at once
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, not FIN
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Relays:
    """Listeners and connections. The methods listen, dial and close are the commands of terminator.py."""

    def __init__(self, contexts: Contexts) -> None:
        self.contexts = contexts
        self.selector = selectors.DefaultSelector()
        self.handshakes: dict[Relay, float] = {}  # with their deadlines, oldest first
        self._listeners: dict[str, socket.socket] = {}  # by address

    def listen(self, network: str, plain: str) -> Address:
        """Let callers in where the host finds us, and on to the Unix socket `plain`; returns where that is."""
        listener, address = listening_socket()
        give_to_group(address)
        self._accept_from(listener, address.address, lambda outer: Relay(self, outer, plain))
        return address

    def dial(self, network: str, plain: str, host_network: str, host_address: str) -> None:
        """Pass what connects to the Unix socket `plain` on to the host's address."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(plain)
        listener.listen()

        def accept(inner: socket.socket) -> None:
            try:
                outer = _begin_connect(Address(host_network, host_address))
            except (OSError, ValueError) as error:
                warn("cannot dial %s: %s", host_address, error)
                inner.close()
            else:
                Relay(self, outer, host_address, inner)

        self._accept_from(listener, plain, accept)

    def close(self, network: str, address: str) -> None:
        """Stop listening there; what is connected stays."""
        if listener := self._listeners.pop(address, None):
            self.selector.unregister(listener)
            listener.close()
            Address(network, address).remove()

    def close_all(self) -> None:
        """Leave no socket's file behind."""
        for address in list(self._listeners):
            self.close("unix" if os.path.isabs(address) else "tcp", address)

    def run(self, control: socket.socket, command: Callable[[], None]) -> None:
        """Relay until `command`, called when control is readable, raises."""
        self.selector.register(control, _READ, lambda mask: command())
        while True:
            timeout = None
            if self.handshakes:
                timeout = max(0.0, next(iter(self.handshakes.values())) - time.monotonic())
            for key, mask in self.selector.select(timeout):
                key.data(mask)
            while self.handshakes:
                oldest, deadline = next(iter(self.handshakes.items()))
                if deadline > time.monotonic() and len(self.handshakes) <= MOST_HANDSHAKES:
                    break
                oldest.refuse("it did not finish the TLS handshake")

    def _accept_from(self, listener: socket.socket, address: str, accept: Callable[[socket.socket], object]) -> None:
        listener.setblocking(False)

        def ready(mask: int) -> None:
            try:
                accept(listener.accept()[0])
            except (BlockingIOError, ConnectionError):
                pass  # who wanted in has left
            except OSError as error:  # no descriptor left
                if self.handshakes:
                    next(iter(self.handshakes)).refuse(str(error))
                else:
                    time.sleep(0.1)

        self._listeners[address] = listener
        self.selector.register(listener, _READ, ready)


class Relay:
    """One connection: TLS on the outer socket, plain bytes on the inner one; first a handshake, then a relay."""

    def __init__(self, relays: Relays, outer: socket.socket, address: str, inner: socket.socket | None = None) -> None:
        """With inner, that grpc dialled: on to the host's address, as TLS client. Else to grpc's address, as server."""
        self._relays, self._outer, self._inner, self._address = relays, outer, inner, address
        # Encrypted bytes pass through these: what a socket gives at once may hold many records, or a part of one.
        self._encrypted_in, self._encrypted_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        if inner:
            context, name = relays.contexts.client, "localhost"
        else:
            context, name = relays.contexts.server, None
        self._tls = context.wrap_bio(self._encrypted_in, self._encrypted_out, not inner, name)
        self._to_outer, self._to_inner = memoryview(b""), memoryview(b"")  # what the socket has not taken yet
        self._outer_ended = self._inner_ended = False
        self._callbacks = {outer: self._on_handshake, inner: self._on_inner}
        self._masks: dict[socket.socket, int] = {}  # what the selector is asked for, where it is asked at all
        outer.setblocking(False)
        if outer.family == socket.AF_INET:
            outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        relays.handshakes[self] = time.monotonic() + HANDSHAKE_TIMEOUT
        self._ask_for(outer, _WRITE if inner else _READ)  # who dials speaks first, once connected

    def refuse(self, reason: str) -> None:
        """Close without having passed anything on, and say why."""
        if self._inner:
            warn("cannot dial %s: %s", self._address, reason)
        else:
            peer = "its socket"
            with contextlib.suppress(OSError, ValueError):  # it has left, or it is a Unix socket
                host, port = self._outer.getpeername()
                peer = f"{host}:{port}"
            warn("refused a caller from %s: %s", peer, reason)
        self._close()

    def _on_handshake(self, mask: int) -> None:
        try:
            if mask & _READ:
                data = self._outer.recv(_CHUNK)
                if not data:
                    self.refuse("it left during the TLS handshake")
                    return
                self._encrypted_in.write(data)
            elif error := self._outer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            try:
                self._tls.do_handshake()
            finally:
                self._send_outer()  # also the alert that tells the other side what is wrong
            if self._inner and self._relays.contexts.peer not in (None, self._tls.getpeercert(True)):
                self.refuse("its certificate is not the host's")
                return
            if not self._inner:
                self._inner = _begin_connect(Address("unix", self._address))
        except (ssl.SSLWantReadError, BlockingIOError):
            self._ask_for(self._outer, _READ | bool(self._to_outer) * _WRITE)
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or (error.reason or str(error)).lower().replace("_", " ")
            self.refuse(reason)
        except OSError as error:
            self.refuse(str(error))
        else:
            del self._relays.handshakes[self]
            self._inner.setblocking(False)
            self._callbacks = {self._outer: self._on_outer, self._inner: self._on_inner}
            self._relays.selector.modify(self._outer, self._masks[self._outer], self._on_outer)
            self._decrypt()
            self._pass_on()

    def _on_outer(self, mask: int) -> None:
        try:
            if mask & _READ:
                data = self._outer.recv(_CHUNK)
                if data:
                    self._encrypted_in.write(data)
                else:
                    self._encrypted_in.write_eof()
                self._decrypt()
        except BlockingIOError:
            pass
        except OSError:
            self._reset()
            return
        self._pass_on()

    def _decrypt(self) -> None:
        """Take the plain bytes of all records that have arrived whole. Called when _to_inner is empty."""
        parts = []
        try:
            while self._encrypted_in.pending or self._tls.pending() or self._encrypted_in.eof:
                part = self._tls.read(_CHUNK)
                if not part:
                    self._outer_ended = True
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._outer_ended = True
        self._to_inner = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))

    def _on_inner(self, mask: int) -> None:
        assert self._inner
        try:
            if mask & _READ:
                data = memoryview(self._inner.recv(_CHUNK))
                if not data:
                    self._inner_ended = True
                    with contextlib.suppress(ssl.SSLError):
                        self._tls.unwrap()  # tells the other side, which need not answer
                while data:
                    data = data[self._tls.write(data) :]
        except BlockingIOError:
            pass
        except OSError:
            self._reset()
            return
        self._pass_on()

    def _pass_on(self) -> None:
        """Send each side what it takes, pass on the end of a side, and ask for what can go on."""
        outer, inner = self._outer, self._inner
        assert inner
        try:
            self._send_outer()
            if self._to_inner:
                with contextlib.suppress(BlockingIOError):
                    self._to_inner = self._to_inner[inner.send(self._to_inner) :]
            if self._inner_ended and not self._to_outer:
                outer.shutdown(socket.SHUT_WR)
            if self._outer_ended and not self._to_inner:
                inner.shutdown(socket.SHUT_WR)
        except OSError:
            self._reset()
            return
        if self._outer_ended and self._inner_ended and not self._to_outer and not self._to_inner:
            self._close()
            return
        self._ask_for(outer, (not self._outer_ended and not self._to_inner) * _READ | bool(self._to_outer) * _WRITE)
        self._ask_for(inner, (not self._inner_ended and not self._to_outer) * _READ | bool(self._to_inner) * _WRITE)

    def _send_outer(self) -> None:
        if self._encrypted_out.pending:
            fresh = self._encrypted_out.read()
            self._to_outer = memoryview(bytes(self._to_outer) + fresh if self._to_outer else fresh)
        if self._to_outer:
            with contextlib.suppress(BlockingIOError):
                self._to_outer = self._to_outer[self._outer.send(self._to_outer) :]

    def _ask_for(self, side: socket.socket, mask: int) -> None:
        """Have the selector tell of this and no more; of nothing at all where mask is 0."""
        before = self._masks.get(side, 0)
        if mask == before:
            return
        self._masks[side] = mask
        selector = self._relays.selector
        if not mask:
            selector.unregister(side)
        elif not before:
            selector.register(side, mask, self._callbacks[side])
        else:
            selector.modify(side, mask, self._callbacks[side])

    def _reset(self) -> None:
        """Close as a connection does that was cut, not ended."""
        for side in (self._outer, self._inner):
            if side:
                with contextlib.suppress(OSError):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close()

    def _close(self) -> None:
        self._relays.handshakes.pop(self, None)
        self._callbacks = {}  # they hold this relay
        for side in (self._outer, self._inner):
            if side:
                self._ask_for(side, 0)
                side.close()


def _begin_connect(address: Address) -> socket.socket:
    """A socket that connects to the address, or will say why not. OSError or ValueError if that is known at once."""
    where: Any = address.address
    if address.network == "unix":
        connection = socket.socket(socket.AF_UNIX)
    else:
        host, _, port = address.address.rpartition(":")
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        connection = socket.socket(family, kind, protocol)
    connection.setblocking(False)
    try:
        connection.connect(where)
    except BlockingIOError:
        pass
    except OSError:
        connection.close()
        raise
    return connection


def warn(message: str, *arguments: object) -> None:
    """A warning in the host's log. Logging is only imported here once there is something to say."""
    from goplugin import log

    logger = log.get_logger("goplugin.automtls")
    if not logger.hasHandlers():
        log.set_up()
    logger.warning(message, *arguments)
