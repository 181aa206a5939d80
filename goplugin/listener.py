"""Where the plugin listens; mirrors serverListener in go-plugin's server.go."""

import os
import random
import re
import socket

import grpc

ANY_PORT = 0


def listen_tcp(server: grpc.Server) -> str:
    """Bind the server to a free port of 127.0.0.1 within the host's range, and return HOST:PORT.

    ValueError for a range that is none, OSError if no port of it is free.
    """
    low, high = port_range()
    ports = range(low, high + 1)
    # Not always from the lowest on, as in Go: plugins started at once would race for each port in turn, and a
    # caller that still knows the port of a plugin that has left would reach its successor.
    first = random.randrange(len(ports))
    for port in (*ports[first:], *ports[:first]):
        if port != ANY_PORT and not _is_free(port):
            continue
        try:
            return f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
        except RuntimeError:
            continue  # somebody was faster since the look
    raise OSError(f"no port of 127.0.0.1 from PLUGIN_MIN_PORT={low} to PLUGIN_MAX_PORT={high} is free")


def port_range() -> tuple[int, int]:
    """The lowest and highest port that the host allows; 0 stands for any. ValueError for a range that is none."""
    low, high = (_port(name) for name in ("PLUGIN_MIN_PORT", "PLUGIN_MAX_PORT"))
    if low > high:
        raise ValueError(f"PLUGIN_MIN_PORT={low} is greater than PLUGIN_MAX_PORT={high}")
    return low, high


def _port(name: str) -> int:
    text = os.environ.get(name, "") or "0"
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or int(text) > 65535:
        raise ValueError(f"{name}={text!r} is not a port: it must be a number from 0 to 65535")
    return int(text)


def _is_free(port: int) -> bool:
    """Look before grpc binds: it logs every port that it cannot have, and is slow at it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # elsewhere the option means that a port in use may be had
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True
