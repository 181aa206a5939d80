"""What host and plugin agree on before the first call; mirrors go-plugin's server.go (Serve, protocolVersion)."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

CORE_PROTOCOL_VERSION = 1  # go-plugin's own version: the host refuses a plugin with any other value


class HandshakeConfig(NamedTuple):
    """What the plugin and its host must have in common (go-plugin's HandshakeConfig).

    protocol_versions: the app protocol versions that the plugin serves, in any order, at least one.
    magic_cookie_key, magic_cookie_value: the environment variable by which a plugin knows that its host started it. It
        only enables a helpful message when the plugin is run by hand; it is not a security measure.
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
        """Return the newest app protocol version that the host offers too, else our lowest.

        The lowest serves old hosts, which offer no list. A host that cannot use it says so itself.
        """
        return max(set(offered).intersection(self.protocol_versions), default=min(self.protocol_versions))


def handshake_line(version: int, network: str, address: str, server_cert: str = "", *, multiplex: bool = False) -> str:
    """Return the line that the plugin writes to its stdout, without the line's end.

    1                     | 1                    | tcp          | 127.0.0.1:PORT | grpc     |             |
    CORE-PROTOCOL-VERSION | APP-PROTOCOL-VERSION | NETWORK-TYPE | NETWORK-ADDR   | PROTOCOL | SERVER-CERT | MULTIPLEX

    network, address: "tcp" and HOST:PORT, or "unix" and the path of a socket.
    server_cert: the plugin's certificate under AutoMTLS, DER in base64 without padding. Otherwise it must be empty: a
        host without AutoMTLS panics on a certificate.
    multiplex: say that the plugin can multiplex. Only for hosts that ask about it: an old one takes a seventh field for
        a part of the sixth.
    """
    fields = (CORE_PROTOCOL_VERSION, version, network, address, "grpc", server_cert, "true" if multiplex else "")
    return "|".join(map(str, fields)).rstrip("|")
