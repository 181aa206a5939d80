"""The environment variables by which a host configures its plugin. Start in go-plugin's client.go sets them."""

import re
from collections.abc import MutableMapping
from typing import NamedTuple

_NAMES = "PLUGIN_(MIN_PORT|MAX_PORT|PROTOCOL_VERSIONS|CLIENT_CERT|MULTIPLEX_GRPC|UNIX_SOCKET_DIR|UNIX_SOCKET_GROUP)"


class Environment(NamedTuple):
    """The host's settings, parsed.

    protocol_versions: the app protocol versions that the host can use. Empty for old hosts, which do not send them.
    ports: the TCP ports to choose from. Port 0 stands for any port.
    client_cert: the host's certificate, PEM, under AutoMTLS; otherwise empty.
    multiplex: whether the host asked for broker multiplexing.
    socket_dir, socket_group: listen on a Unix socket in this folder, and let this group (name or gid) use it.
    ignored: a sentence for each setting that is invalid and was ignored.
    """

    protocol_versions: frozenset[int] = frozenset()
    ports: range = range(1)
    client_cert: str = ""
    multiplex: bool = False
    socket_dir: str = ""
    socket_group: str = ""
    ignored: tuple[str, ...] = ()


def take(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Remove the host's variables from environ and return them.

    They are meant for this process only: a child that imports goplugin must not take itself for the plugin.
    """
    return {name: environ.pop(name) for name in list(environ) if re.fullmatch(_NAMES, name)}


def parse(variables: dict[str, str]) -> Environment:
    """Parse what `take` returned. ValueError if the host's range of ports is invalid."""
    low, high = _port(variables, "PLUGIN_MIN_PORT"), _port(variables, "PLUGIN_MAX_PORT")
    if low > high:
        raise ValueError(f"PLUGIN_MIN_PORT={low} is greater than PLUGIN_MAX_PORT={high}")
    offered = list(filter(None, variables.get("PLUGIN_PROTOCOL_VERSIONS", "").split(",")))
    numbers = [text for text in offered if re.fullmatch(r"[+-]?[0-9]{1,18}", text)]
    return Environment(
        protocol_versions=frozenset(map(int, numbers)),
        ports=range(low, high + 1),
        client_cert=variables.get("PLUGIN_CLIENT_CERT", ""),
        # As Go parses a bool.
        multiplex=variables.get("PLUGIN_MULTIPLEX_GRPC", "") in ("1", "t", "T", "true", "TRUE", "True"),
        socket_dir=variables.get("PLUGIN_UNIX_SOCKET_DIR", ""),
        socket_group=variables.get("PLUGIN_UNIX_SOCKET_GROUP", ""),
        ignored=tuple(
            f"PLUGIN_PROTOCOL_VERSIONS: {text!r} is not a number; it is ignored"
            for text in offered
            if text not in numbers
        ),
    )


def _port(variables: dict[str, str], name: str) -> int:
    text = variables.get(name, "") or "0"
    if not re.fullmatch(r"\+?0*[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError(f"{name}={text[:40]!r} is not a port: the host must set a number from 0 to 65535")
    return int(text)
