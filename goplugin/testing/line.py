"""Parses the handshake line as a host does."""

import base64
from typing import NamedTuple

from goplugin.address import Address
from goplugin.handshake import CORE_PROTOCOL_VERSION

_UNRECOGNIZED = (
    "Unrecognized remote plugin message: {!r} (a host says the same): the first line on the plugin's stdout must be the"
    " handshake line, such as 1|1|tcp|127.0.0.1:PORT|grpc"
)


class Handshake(NamedTuple):
    """A parsed handshake line. version: the app protocol version. server_cert: DER, under AutoMTLS; otherwise b""."""

    version: int
    address: Address
    server_cert: bytes


def parse_handshake(line: str) -> Handshake:
    """Parse the line as Start in client.go does. If it is not valid, ValueError with a host's error text."""
    fields = line.strip().split("|")
    if len(fields) < 4:
        raise ValueError(_UNRECOGNIZED.format(line))
    core, version, network, address, protocol, server_cert, *_ = [*fields, "netrpc", "", ""][: max(6, len(fields))]
    if core != str(CORE_PROTOCOL_VERSION):
        raise ValueError(f"Incompatible core API version with plugin. Plugin version: {core}, Core version: 1")
    if not version.isdecimal():
        raise ValueError(f"Error parsing protocol version {version!r}: it must be a number")
    if network not in ("tcp", "unix"):
        raise ValueError(f"Unknown address type: {network}")
    if protocol != "grpc":
        raise ValueError(f"The plugin speaks {protocol!r}; this host speaks only grpc")
    if server_cert and len(server_cert) <= 50:
        server_cert = ""  # as client.go does: so short a field is not a certificate
    padded = server_cert + "=" * (-len(server_cert) % 4)
    return Handshake(int(version), Address(network, address), base64.b64decode(padded, validate=True))
