"""The private hop between companion and grpc: Unix sockets in a folder of mode 0700.

On Windows it is TLS on loopback with two throw-away certificates. Each side trusts only the other's. These are P-256,
which grpcio can verify; the host's are P-521, which it cannot.
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
    """Unix sockets. credentials: what grpc needs to listen and to dial; () because there is no TLS."""

    credentials: tuple[str, ...] = ()

    def __init__(self, path: Callable[[], str]) -> None:
        """path(): returns a path for a Unix socket that only our user can reach."""
        self.path = path
        self._folders: dict[str, os.stat_result] = {}  # the folders of grpc's sockets, by path

    def expect(self, plain: Address) -> None:
        """Remember the folder of a socket where grpc listens."""
        folder = os.path.dirname(plain.address)
        self._folders[folder] = os.lstat(folder)

    def connect(self, plain: Address) -> socket.socket:
        """Return a socket that connects to grpc. OSError if another program has replaced grpc's socket."""
        folder = os.path.dirname(plain.address)
        if not os.path.samestat(os.lstat(folder), self._folders[folder]):
            raise PermissionError(errno.EPERM, "another program has replaced our folder for sockets")
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
        """Return the TLS state of a new connection of the hop. dials: the companion connects to grpc."""
        return NoTLS()


class LoopbackHop:
    """TLS on loopback, for systems without Unix sockets. credentials: grpc's key, its certificate and ours, PEM."""

    def __init__(self, path: Callable[[], str], folder: str) -> None:
        """path(): raises OSError, as there are no Unix sockets. folder: holds the key while OpenSSL loads it.

        ValueError if the package cryptography is missing.
        """
        self.path = path
        (ours, our_key), (theirs, their_key) = make_certificate(), make_certificate()
        self.credentials = (their_key.decode(), theirs.decode(), ours.decode())
        self._contexts = contexts_for(ssl.PEM_cert_to_DER_cert(theirs.decode()), ours, our_key, folder)

    def expect(self, plain: Address) -> None:
        """Do nothing: the certificates make sure that it is grpc."""

    def connect(self, plain: Address) -> socket.socket:
        """Return a socket that connects to grpc. The TLS handshake checks grpc's certificate later."""
        return begin_connect(plain)

    def listen(self) -> tuple[socket.socket, Address]:
        """Return a socket for grpc to connect to."""
        listener = socket.create_server(("127.0.0.1", 0))
        return listener, Address("tcp", f"127.0.0.1:{listener.getsockname()[1]}")

    def tls(self, *, dials: bool) -> TLS | NoTLS:
        """Return the TLS state of a new connection of the hop. dials: the companion connects to grpc."""
        return TLS(self._contexts, dials=dials)


Hop = UnixHop | LoopbackHop


def make_hop(path: Callable[[], str], folder: Callable[[], str]) -> Hop:
    """Return this system's hop. path(): returns a path for a Unix socket. folder(): returns LoopbackHop's folder."""
    return UnixHop(path) if UNIX_SOCKETS else LoopbackHop(path, folder())
