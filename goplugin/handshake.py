"""What host and plugin agree on before the first call; mirrors go-plugin's server.go (Serve, protocolVersion)."""

import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from goplugin.environ import host_environ

CORE_PROTOCOL_VERSION = 1  # go-plugin's own version: any other value makes the host refuse the plugin


class HandshakeConfig(NamedTuple):
    """What the plugin and its host must have in common (go-plugin's HandshakeConfig).

    protocol_versions: the app protocol versions that the plugin serves, in any order, at least one.
    magic_cookie_key, magic_cookie_value: the environment variable by which a plugin knows that a
        host started it. This tells a person who starts it by hand what it is; it is no security.
    """

    protocol_versions: Sequence[int]
    magic_cookie_key: str
    magic_cookie_value: str


class Handshake(NamedTuple):
    """The one line that a plugin writes to its stdout; `str()` gives it, without the line's end.

    CORE-PROTOCOL-VERSION | APP-PROTOCOL-VERSION | NETWORK-TYPE | NETWORK-ADDR | PROTOCOL [| SERVER-CERT [| MULTIPLEX]]

    network and address: "tcp" and HOST:PORT, or "unix" and the path of a socket.
    server_cert: under AutoMTLS the certificate, DER in base64 without padding. A host without
        AutoMTLS panics on a certificate, so it is empty then.
    multiplex: "false" if the host asked for multiplexing (it then says that the plugin cannot),
        else empty: an old host takes a seventh field for a part of the sixth.
    """

    app_protocol_version: int
    network: str
    address: str
    server_cert: str = ""
    multiplex: str = ""

    def __str__(self) -> str:
        """The line, without its end."""
        fields = [CORE_PROTOCOL_VERSION, self.app_protocol_version, self.network, self.address, "grpc"]
        if self.server_cert or self.multiplex:
            fields.append(self.server_cert)
        if self.multiplex:
            fields.append(self.multiplex)
        return "|".join(map(str, fields))


def check_magic_cookie(config: HandshakeConfig) -> bool:
    """Whether the environment holds the magic cookie. ValueError if the config is not usable."""
    if not config.magic_cookie_key or not config.magic_cookie_value:
        raise ValueError(
            "HandshakeConfig needs a magic_cookie_key and a magic_cookie_value: the host's, see its source"
        )
    if not config.protocol_versions:
        raise ValueError("HandshakeConfig.protocol_versions is empty: it needs the host's app protocol version")
    return os.environ.get(config.magic_cookie_key) == config.magic_cookie_value


def choose_protocol_version(config: HandshakeConfig) -> int:
    """The newest app protocol version in common with the host, else our lowest.

    The lowest serves old hosts, which send no list; a host that cannot use it says so itself.
    """
    offered = set()
    for text in filter(None, host_environ.get("PLUGIN_PROTOCOL_VERSIONS", "").split(",")):
        if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            offered.add(int(text))
        else:
            print(f"PLUGIN_PROTOCOL_VERSIONS: {text!r} is not a number, passed over", file=sys.stderr)
    return max(offered.intersection(config.protocol_versions), default=min(config.protocol_versions))


def exit_with(message: str) -> NoReturn:
    """End the process with exit code 1 after telling on stderr what happened and what to do."""
    print(message, file=sys.stderr)
    raise SystemExit(1)
