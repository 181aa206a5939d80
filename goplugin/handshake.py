"""What host and plugin agree on before the first call; mirrors go-plugin's server.go (Serve, protocolVersion).

It needs nothing but the standard library, because its first half must run before `import grpc`.
"""

import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn, TextIO

CORE_PROTOCOL_VERSION = 1  # go-plugin's own version: any other value makes the host refuse the plugin

# The host sets these for every plugin that it starts, whatever the plugin's magic cookie is.
_SET_BY_HOSTS = ("PLUGIN_MIN_PORT", "PLUGIN_PROTOCOL_VERSIONS")


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

    CORE-PROTOCOL-VERSION | APP-PROTOCOL-VERSION | NETWORK-TYPE | NETWORK-ADDR | PROTOCOL [ | SERVER-CERT [ | MULTIPLEX ] ]

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
        fields = [CORE_PROTOCOL_VERSION, self.app_protocol_version, self.network, self.address, "grpc"]
        if self.server_cert or self.multiplex:
            fields.append(self.server_cert)
        if self.multiplex:
            fields.append(self.multiplex)
        return "|".join(map(str, fields))


def started_by_host() -> bool:
    """Whether a go-plugin host, not a person or an importing tool, started this process."""
    return any(name in os.environ for name in _SET_BY_HOSTS)


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
    for text in filter(None, os.environ.get("PLUGIN_PROTOCOL_VERSIONS", "").split(",")):
        if re.fullmatch(r"[+-]?[0-9]+", text, re.ASCII):
            offered.add(int(text))
        else:
            print(f"PLUGIN_PROTOCOL_VERSIONS: {text!r} is not a number, passed over", file=sys.stderr)
    return max(offered.intersection(config.protocol_versions), default=min(config.protocol_versions))


def exit_with(message: str) -> NoReturn:
    """End the process with exit code 1 after telling on stderr what happened and what to do."""
    print(message, file=sys.stderr)
    raise SystemExit(1)


_host_stdout: TextIO | None = None


def keep_stdout() -> None:
    """Take the host's end of stdout for the handshake line alone; what else is printed goes to stderr.

    File descriptor 1 itself is replaced, so that this holds for C libraries and child processes too: a stray line
    would be taken for the handshake, and a long one later would end the host's reading and block the writer.
    """
    global _host_stdout
    # Not inheritable: a child that lives on would keep the host waiting for the end of this pipe.
    fd = os.dup(1)
    os.dup2(2, 1)
    _host_stdout = os.fdopen(fd, "w", encoding="utf-8", newline="\n")
    if hasattr(os, "register_at_fork"):  # a child by fork without exec inherits all the same
        os.register_at_fork(after_in_child=lambda: os.close(fd))


def host_stdout() -> TextIO:
    """Where the handshake line goes."""
    return _host_stdout or sys.stdout
