"""How grpc reaches the host: directly (Plain), or through the companion (TLS, or one connection for everything)."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import grpc

from goplugin.address import Address, give_to_group, listening_socket
from goplugin.environment import Environment

OPTIONS = (  # for servers and channels: messages of any size; 16 MiB of metadata, as in Go
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 16 << 20),
    ("grpc.absolute_max_metadata_size", 16 << 20),
)


class Plain:
    """Host and grpc connect directly, without TLS. Any program that reaches the address can call.

    addresses: those where grpc listens, and those that it dialled.
    """

    def __init__(self, environment: Environment, path: Callable[[], str]) -> None:
        """path(): returns a path for a Unix socket that only our user can reach."""
        self._environment, self._path = environment, path
        self.addresses: set[Address] = set()

    def server_cert(self) -> str:
        """Return the certificate for the handshake line, or "". ValueError if it cannot be made."""
        return ""

    def listen(self, server: Any) -> Address:
        """Bind the server, and return the address for the host. ValueError or OSError if that fails."""
        for _ in range(100):
            # Probe first: grpc gives no reason when bind fails, and logs every failed port.
            probe, address = listening_socket(self._environment, self._path)
            probe.close()
            address.remove()
            try:
                server.add_insecure_port(address.target())
            except RuntimeError as error:
                reason = error  # another program took the port after the probe
            else:
                give_to_group(address, self._environment.socket_group)
                self.addresses.add(address)
                return address
        raise OSError(f"grpc cannot listen: {reason}")

    def dial(self, address: Address) -> Address:
        """Return the address by which grpc reaches this address of the host. Release it with `close_dialled`.

        ValueError if the address is malformed, OSError if dialling fails.
        """
        address.target()
        self.addresses.add(address)
        return address

    def channel(self, grpc_or_aio: Any, address: Address, options: tuple[Any, ...]) -> Any:
        """Return a channel to an address from `dial`. grpc_or_aio: the module that makes the channel."""
        return grpc_or_aio.insecure_channel(address.target(), options)

    def close(self, address: Address) -> None:
        """Release an address from `listen`: grpc has closed the socket, but leaves the file of a Unix socket."""
        address.remove()
        self.addresses.discard(address)

    def close_dialled(self, address: Address) -> None:
        """Release an address from `dial`."""
        self.addresses.discard(address)


class ByCompanion:
    """The companion terminates TLS. It serves only callers that hold the host's key."""

    _options: tuple[Any, ...] = ()

    def __init__(self, companion: Any) -> None:
        """companion: a Companion, or testing/tls_thread.py's TLSThread."""
        self._companion = companion
        self.server_cert = companion.server_cert
        self.addresses: set[Address] = set()  # stays empty: only the companion connects to grpc

    def listen(self, server: Any) -> Address:
        """Let grpc listen on the private hop, and the companion where the host finds us. Return the latter address."""
        if self._hop:
            key, certificate, companions = self._hop
            server_credentials = grpc.ssl_server_credentials([(key, certificate)], companions, True)
            plain = Address("tcp", f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', server_credentials)}")
        else:
            plain = Address("unix", self._companion.path())
            server.add_insecure_port(plain.target())
        return Address(*self._companion.ask("listen", *plain))

    @functools.cached_property
    def _hop(self) -> list[bytes]:
        """For TLS on the private hop: grpc's key and certificate, and the companion's certificate. [] without TLS.

        OSError if the companion is gone.
        """
        self.server_cert()  # the certificate is the companion's first reply
        return [part.encode() for part in self._companion.ask("hop")]

    def dial(self, address: Address) -> Address:
        """Return an address at which the companion connects grpc to the host, and checks the host's certificate."""
        address.target()  # ValueError if it is malformed
        return Address(*self._companion.ask("dial", *address.resolve()))

    def channel(self, grpc_or_aio: Any, address: Address, options: tuple[Any, ...]) -> Any:
        """Return a channel on the private hop."""
        options = (*options, *self._options)
        if not self._hop:
            return grpc_or_aio.insecure_channel(address.target(), options)
        key, certificate, companions = self._hop
        channel_credentials = grpc.ssl_channel_credentials(companions, key, certificate)
        options = (*options, ("grpc.ssl_target_name_override", "localhost"))  # the name in the certificate
        return grpc_or_aio.secure_channel(address.target(), channel_credentials, options)

    def close(self, address: Address) -> None:
        """Tell the companion to close an address from `listen`."""
        with contextlib.suppress(OSError):  # it has died, and the address with it
            self._companion.tell("close", *address)

    def close_dialled(self, address: Address) -> None:
        """Tell the companion to close an address from `dial`."""
        self.close(address)


class Multiplexed(ByCompanion):
    """All connections are streams of the companion's one connection to the host. Under AutoMTLS each has TLS inside.

    Streams lead to the plugin's server. Before one that leads to a brokered server, the host knocks.
    """

    _options = (("grpc.client_idle_timeout_ms", 2**31 - 1),)  # a channel has one stream and must keep it when idle

    def expect(self, address: Address) -> None:
        """Let the host's next stream lead to this address of grpc's. OSError if the companion is gone."""
        self._companion.ask("expect", *address)

    def open(self) -> Address:
        """Open a stream to the host, and return an address that leads to it. ValueError or OSError if that fails."""
        return Address(*self._companion.ask("open"))

    def dial(self, address: Address) -> Address:
        """Return the address, which is from `open`."""
        return address


Transport = Plain | ByCompanion  # Plain's docstrings describe the methods of both
