"""How host and plugin connect: plainly, by the companion (TLS, or one connection for all), or by grpcio's own TLS."""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import grpc

from goplugin.address import Address, give_to_group, listening_socket, remove_private_folder
from goplugin.environment import Environment

Options = Any  # of a grpc server or channel: pairs of a name and a value
InsecureChannel = Callable[[str, Options], Any]  # grpc.insecure_channel or grpc.aio.insecure_channel


class Plain:
    """No TLS: whoever can reach the address can call."""

    def __init__(self, environment: Environment, path: Callable[[], str]) -> None:
        """path(): returns a path for a Unix socket that only our user can reach."""
        self._environment, self._path = environment, path

    def server_cert(self) -> str:
        """Return the certificate for the handshake line, or "". ValueError says why there is none."""
        return ""

    def listen(self, server: Any) -> Address:
        """Bind the server, and return where the host finds it. ValueError or OSError say why it cannot."""
        return self._bind(server.add_insecure_port)

    def dial(self, address: Address, options: Options, insecure_channel: InsecureChannel) -> Any:
        """Return a channel to where the host listens. ValueError if that is not an address, OSError if it cannot.

        insecure_channel: grpc's or grpc.aio's.
        """
        return insecure_channel(address.target(), options)

    def close(self, address: Address) -> None:
        """Release an address that `listen` returned. Grpc has closed it; the file of a Unix socket stays."""
        address.remove()

    def companion_died(self) -> bool:
        """Clean up after it; whether nobody can call us any more."""
        return False

    def _bind(self, add_port: Callable[[str], object]) -> Address:
        for _ in range(100):
            # Probe first: grpc gives no reason when bind fails, and logs every failed port.
            probe, address = listening_socket(self._environment, self._path)
            probe.close()
            address.remove()
            try:
                add_port(address.target())
            except RuntimeError as error:
                reason = error  # another program took the port since the probe
            else:
                give_to_group(address, self._environment.socket_group)
                return address
        raise OSError(f"grpc cannot listen: {reason}")


class ByCompanion:
    """TLS ends in the companion, which serves only callers that hold the host's key."""

    def __init__(self, companion: Any) -> None:
        """companion: a Companion, or what has its methods (see testing.py)."""
        self._companion = companion
        self.server_cert = companion.server_cert

    def listen(self, server: Any) -> Address:
        """Have grpc listen on a Unix socket, and the companion in front of it where the host finds us."""
        self.server_cert()  # the first reply comes first
        plain = str(self._companion.ask("path"))
        server.add_insecure_port(Address("unix", plain).target())
        return Address(*self._companion.ask("listen", plain))

    def dial(self, address: Address, options: Options, insecure_channel: InsecureChannel) -> Any:
        """Return a channel through the companion, which checks the host's certificate."""
        address.target()  # ValueError if it is not an address
        return self._dial_plain(Address("unix", str(self._companion.ask("dial", *address))), options, insecure_channel)

    def _dial_plain(self, plain: Address, options: Options, insecure_channel: InsecureChannel) -> Any:
        channel = insecure_channel(plain.target(), options)
        weakref.finalize(channel, self.close, plain).atexit = False
        return channel

    def close(self, address: Address) -> None:
        """Tell the companion."""
        with contextlib.suppress(OSError):  # it has died, and with it the address
            self._companion.tell("close", *address)

    def companion_died(self) -> bool:
        """Remove its folder."""
        remove_private_folder(self._companion.folder)
        return True


class Multiplexed(ByCompanion):
    """All connections are streams of one, which the companion has with the host; with TLS inside each, or without.

    The first server listens where the host finds us. To the others, the host comes when it has knocked.
    """

    def expect(self, address: Address) -> None:
        """Let the host's next stream lead to this socket. OSError if the companion is gone."""
        self._companion.ask("expect", address.address)

    def open(self) -> Address:
        """Open a stream to the host; return a socket that leads to it. ValueError or OSError if that cannot be."""
        return Address("unix", str(self._companion.ask("open")))

    def dial(self, address: Address, options: Options, insecure_channel: InsecureChannel) -> Any:
        """Return a channel to what `open` returned. It stays connected however long it is idle: there is one stream."""
        return self._dial_plain(address, (*options, ("grpc.client_idle_timeout_ms", 2**31 - 1)), insecure_channel)


class UnverifiedTLS(Plain):
    """TLS by grpcio, which serves whoever calls: it cannot verify the P-521 certificates of go-plugin's hosts."""

    def __init__(self, environment: Environment, path: Callable[[], str]) -> None:
        from goplugin.companion import tls

        super().__init__(environment, path)
        certificate, key = tls.make_certificate()
        self._credentials = grpc.ssl_server_credentials([(key, certificate)])
        self._server_cert = tls.for_handshake(certificate)

    def server_cert(self) -> str:
        """Return our certificate."""
        return self._server_cert

    def listen(self, server: Any) -> Address:
        """Do as Plain does, but encrypted."""
        return self._bind(lambda target: server.add_secure_port(target, self._credentials))

    def dial(self, address: Address, options: Options, insecure_channel: InsecureChannel) -> Any:
        """Never works: OSError."""
        raise OSError("the broker cannot dial: grpcio's TLS cannot verify the host, and there is no companion process")


Transport = Plain | ByCompanion  # what Plugin and Broker use; what each method promises is said in Plain
