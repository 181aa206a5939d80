"""How host and plugin connect: plainly, or by the companion (TLS, or one connection for all)."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import grpc

from goplugin.address import Address, give_to_group, listening_socket
from goplugin.environment import Environment

OPTIONS = (  # of servers and channels: no limits but those of gRPC itself; 16 MiB of metadata, as in Go
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 16 << 20),
    ("grpc.absolute_max_metadata_size", 16 << 20),
)


class Plain:
    """No TLS: whoever can reach the address can call.

    addresses: those that are listened at or dialled.
    """

    def __init__(self, environment: Environment, path: Callable[[], str]) -> None:
        """path(): returns a path for a Unix socket that only our user can reach."""
        self._environment, self._path = environment, path
        self.addresses: set[Address] = set()

    def server_cert(self) -> str:
        """Return the certificate for the handshake line, or "". ValueError says why there is none."""
        return ""

    def listen(self, server: Any) -> Address:
        """Bind the server, and return where the host finds it. ValueError or OSError say why it cannot."""
        for _ in range(100):
            # Probe first: grpc gives no reason when bind fails, and logs every failed port.
            probe, address = listening_socket(self._environment, self._path)
            probe.close()
            address.remove()
            try:
                server.add_insecure_port(address.target())
            except RuntimeError as error:
                reason = error  # another program took the port since the probe
            else:
                give_to_group(address, self._environment.socket_group)
                self.addresses.add(address)
                return address
        raise OSError(f"grpc cannot listen: {reason}")

    def dial(self, address: Address) -> Address:
        """Return the address for grpc to reach the host's, once, until `close_dialled`.

        ValueError if it is malformed, OSError if dialling fails.
        """
        address.target()
        self.addresses.add(address)
        return address

    def channel(self, grpc_or_aio: Any, address: Address, options: tuple[Any, ...]) -> Any:
        """Return a channel to what `dial` returned. grpc_or_aio: the module whose channel it is to be."""
        return grpc_or_aio.insecure_channel(address.target(), options)

    def close(self, address: Address) -> None:
        """Release an address that `listen` returned. Grpc has closed it; the file of a Unix socket stays."""
        address.remove()
        self.addresses.discard(address)

    def close_dialled(self, address: Address) -> None:
        """Release an address that `dial` returned."""
        self.addresses.discard(address)


class ByCompanion:
    """TLS ends in the companion, which serves only callers that hold the host's key."""

    _options: tuple[Any, ...] = ()

    def __init__(self, companion: Any) -> None:
        """companion: a Companion, or testing/tls_thread.py's TLSThread."""
        self._companion = companion
        self.server_cert = companion.server_cert
        self.addresses: set[Address] = set()  # those of grpc are known to this process and the companion alone

    def listen(self, server: Any) -> Address:
        """Have grpc listen on the private hop, and the companion in front of it where the host finds us."""
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
        """What TLS on the private hop needs: grpc's key and certificate, and the companion's; [] if it has none.

        OSError if the companion is gone.
        """
        self.server_cert()  # the first reply comes first
        return [part.encode() for part in self._companion.ask("hop")]

    def dial(self, address: Address) -> Address:
        """Have the companion connect to the host, and check its certificate."""
        address.target()  # ValueError if it is not an address
        return Address(*self._companion.ask("dial", *address.resolve()))

    def channel(self, grpc_or_aio: Any, address: Address, options: tuple[Any, ...]) -> Any:
        """Return a channel on the private hop."""
        options = (*options, *self._options)
        if not self._hop:
            return grpc_or_aio.insecure_channel(address.target(), options)
        key, certificate, companions = self._hop
        channel_credentials = grpc.ssl_channel_credentials(companions, key, certificate)
        options = (*options, ("grpc.ssl_target_name_override", "localhost"))  # as its certificate says
        return grpc_or_aio.secure_channel(address.target(), channel_credentials, options)

    def close(self, address: Address) -> None:
        """Tell the companion."""
        with contextlib.suppress(OSError):  # it has died, and with it the address
            self._companion.tell("close", *address)

    def close_dialled(self, address: Address) -> None:
        """Tell the companion."""
        self.close(address)


class Multiplexed(ByCompanion):
    """All connections are streams of one, which the companion has with the host; with TLS inside each, or without.

    The first server listens where the host finds us. To the others, the host comes when it has knocked.
    """

    _options = (("grpc.client_idle_timeout_ms", 2**31 - 1),)  # there is one stream, however long it is idle

    def expect(self, address: Address) -> None:
        """Let the host's next stream lead there, where grpc listens. OSError if the companion is gone."""
        self._companion.ask("expect", *address)

    def open(self) -> Address:
        """Open a stream to the host; return an address that leads to it. ValueError or OSError if that cannot be."""
        return Address(*self._companion.ask("open"))

    def dial(self, address: Address) -> Address:
        """Return what `open` returned."""
        return address


Transport = Plain | ByCompanion  # what Plugin and Broker use; what each method promises is said in Plain
