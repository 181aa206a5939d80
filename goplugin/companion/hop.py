"""The private hop between companion and grpc: Unix sockets in a folder of mode 0700.

Where there are none (Windows), TLS on loopback, with two throw-away certificates: each side trusts the other's alone.
Unlike the host's, these are P-256, which grpcio can verify.
"""

import errno
import os
import socket
import ssl
from collections.abc import Callable

from goplugin.address import UNIX_SOCKETS, Address
from goplugin.companion.relay import begin_connect, check_peer
from goplugin.companion.tls import TLS, NoTLS, contexts_for, make_certificate


class UnixHop:
    """credentials: what grpc needs to listen and to dial; none here."""

    credentials: tuple[str, ...] = ()

    def __init__(self, path: Callable[[], str]) -> None:
        """path(): returns a path for a Unix socket that only our user can reach."""
        self.path = path
        self._folders: dict[str, os.stat_result] = {}  # of grpc's sockets, by path

    def expect(self, plain: Address) -> None:
        """Note that grpc listens there."""
        folder = os.path.dirname(plain.address)
        self._folders[folder] = os.lstat(folder)

    def connect(self, plain: Address) -> socket.socket:
        """Return a socket that connects to grpc's. OSError if it is not grpc's any more."""
        folder = os.path.dirname(plain.address)
        if not os.path.samestat(os.lstat(folder), self._folders[folder]):
            raise PermissionError(errno.EPERM, "somebody has put another folder in the place of ours")
        connection = begin_connect(plain)
        try:
            check_peer(connection)
        except OSError:
            connection.close()
            raise
        return connection

    def listen(self) -> tuple[socket.socket, Address]:
        """Return a socket for grpc to connect to."""
        listener = socket.socket(socket.AF_UNIX)
        path = self.path()
        listener.bind(path)
        listener.listen()
        return listener, Address("unix", path)

    def tls(self, *, dials: bool) -> TLS | NoTLS:
        """Return what a connection of the hop needs. dials: to grpc."""
        return NoTLS()


class LoopbackHop:
    """The same for systems without Unix sockets. credentials: grpc's key, its certificate and ours, PEM."""

    def __init__(self, path: Callable[[], str], folder: str) -> None:
        """path(): raises OSError. folder: for the key, while OpenSSL loads it.

        ValueError if the package cryptography is missing.
        """
        self.path = path
        (ours, our_key), (theirs, their_key) = make_certificate(), make_certificate()
        self.credentials = (their_key.decode(), theirs.decode(), ours.decode())
        self._contexts = contexts_for(ssl.PEM_cert_to_DER_cert(theirs.decode()), ours, our_key, folder)

    def expect(self, plain: Address) -> None:
        """Note that grpc listens there."""

    def connect(self, plain: Address) -> socket.socket:
        """Return a socket that connects to grpc's. Its certificate is checked later."""
        return begin_connect(plain)

    def listen(self) -> tuple[socket.socket, Address]:
        """Return a socket for grpc to connect to."""
        listener = socket.create_server(("127.0.0.1", 0))
        return listener, Address("tcp", f"127.0.0.1:{listener.getsockname()[1]}")

    def tls(self, *, dials: bool) -> TLS | NoTLS:
        """Return what a connection of the hop needs. dials: to grpc."""
        return TLS(self._contexts, dials=dials)


Hop = UnixHop | LoopbackHop  # what each method does is said in UnixHop


def make_hop(path: Callable[[], str], folder: Callable[[], str]) -> Hop:
    """Return the hop for this system. path(): returns a path for a Unix socket. folder(): one for LoopbackHop's key."""
    return UnixHop(path) if UNIX_SOCKETS else LoopbackHop(path, folder())
