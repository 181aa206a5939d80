"""The handshake: cookie, protocol version, and the line on stdout. Mirrors Serve and protocolVersion in server.go."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

CORE_PROTOCOL_VERSION = 1  # go-plugin's own version: the host refuses a plugin with any other value


class HandshakeConfig(NamedTuple):
    """The values that a plugin and its host share (go-plugin's HandshakeConfig).

    protocol_versions: the app protocol versions that the plugin serves, at least one, in any order.
    magic_cookie_key, magic_cookie_value: an environment variable that the host sets. It only enables a helpful message
        when the plugin is run by hand; it is not a security measure.
    """

    protocol_versions: Sequence[int]
    magic_cookie_key: str
    magic_cookie_value: str

    def check(self) -> None:
        """Raise ValueError if a field is empty."""
        if not self.magic_cookie_key or not self.magic_cookie_value:
            raise ValueError(
                "HandshakeConfig: magic_cookie_key and magic_cookie_value are needed: copy them from your host's source"
            )
        if not self.protocol_versions:
            raise ValueError("HandshakeConfig.protocol_versions is empty: put your host's app protocol version there")

    def choose_version(self, offered: Collection[int]) -> int:
        """Return the newest of our app protocol versions that the host offers; our lowest if it offers none of them.

        The lowest is for old hosts, which offer no list. A host that cannot use it reports that itself.
        """
        return max(set(offered).intersection(self.protocol_versions), default=min(self.protocol_versions))


def handshake_line(version: int, network: str, address: str, server_cert: str = "", *, multiplex: bool = False) -> str:
    """Return the line that the plugin writes to its stdout, without the newline.

    1                     | 1                    | tcp          | 127.0.0.1:PORT | grpc     |             |
    CORE-PROTOCOL-VERSION | APP-PROTOCOL-VERSION | NETWORK-TYPE | NETWORK-ADDR   | PROTOCOL | SERVER-CERT | MULTIPLEX

    network, address: "tcp" and HOST:PORT, or "unix" and the path of a socket.
    server_cert: the plugin's certificate under AutoMTLS, DER in base64 without padding. Otherwise it must be empty: a
        host without AutoMTLS panics on a certificate.
    multiplex: say that the plugin can multiplex. Only for hosts that ask for it: older hosts take a seventh field for a
        part of the sixth.
    """
    fields = (CORE_PROTOCOL_VERSION, version, network, address, "grpc", server_cert, "true" if multiplex else "")
    return "|".join(map(str, fields)).rstrip("|")
