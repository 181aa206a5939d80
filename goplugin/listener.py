"""Where the plugin listens; mirrors serverListener in go-plugin's server.go."""

import contextlib
import os
import random
import re
import shutil
import socket
import stat
from typing import NamedTuple

import grpc

from goplugin.environ import host_environ

_ANY_PORT = 0


class Address(NamedTuple):
    """network: "tcp" or "unix", as Go names them. address: HOST:PORT, or the path of a socket."""

    network: str
    address: str

    def target(self) -> str:
        """The address as grpc spells it, for a server to bind or a channel to dial. ValueError if it is none."""
        if self.network == "unix" and self.address:
            return "unix:" + self.address.replace("%", "%25")
        if self.network == "tcp" and re.fullmatch(r".+:[0-9]{1,5}", self.address):
            return self.address
        raise ValueError(f"not an address: network {self.network!r}, address {self.address!r}")

    def remove(self) -> None:
        """Remove the socket's file, if there is one left."""
        if self.network == "unix":
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.address)


def listen(server: grpc.Server) -> Address:
    """Bind the server where the host wants it: a Unix socket in PLUGIN_UNIX_SOCKET_DIR, else a TCP port of 127.0.0.1.

    ValueError for a setting that is none, OSError if the system refuses.
    """
    folder = host_environ.get("PLUGIN_UNIX_SOCKET_DIR")
    return _listen_unix(server, folder) if folder else _listen_tcp(server)


def _listen_tcp(server: grpc.Server) -> Address:
    low, high = _port("PLUGIN_MIN_PORT"), _port("PLUGIN_MAX_PORT")
    if low > high:
        raise ValueError(f"PLUGIN_MIN_PORT={low} is greater than PLUGIN_MAX_PORT={high}")
    ports = range(low, high + 1)
    # Not always from the lowest on, as in Go: plugins started at once would race for each port in turn, and a
    # caller that still knows the port of a plugin that has left would reach its successor.
    first = random.randrange(len(ports))
    for port in (*ports[first:], *ports[:first]):
        if port == _ANY_PORT or _is_free(port):
            with contextlib.suppress(RuntimeError):  # somebody was faster since the look
                return Address("tcp", f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}")
    raise OSError(f"no port of 127.0.0.1 from PLUGIN_MIN_PORT={low} to PLUGIN_MAX_PORT={high} is free")


def _port(name: str) -> int:
    text = host_environ.get(name, "") or "0"
    if not re.fullmatch(r"\+?0*[0-9]{1,5}", text) or int(text) > 65535:
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


def _listen_unix(server: grpc.Server, folder: str) -> Address:
    if re.search(r"[|\s]", folder):
        raise ValueError(f"PLUGIN_UNIX_SOCKET_DIR={folder!r} has a character that the handshake line cannot carry")
    path = os.path.join(folder, f"plugin{os.urandom(4).hex()}")
    try:
        with socket.socket(socket.AF_UNIX) as probe:  # grpc does not say why it cannot
            probe.bind(path)
        os.remove(path)
    except OSError as error:
        raise OSError(
            f"PLUGIN_UNIX_SOCKET_DIR: no socket at {path}, {len(os.fsencode(path))} bytes: {error}"
        ) from error
    address = Address("unix", path)
    server.add_insecure_port(address.target())
    try:
        if group := host_environ.get("PLUGIN_UNIX_SOCKET_GROUP"):
            _give_to_group(path, group)
    except OSError:
        address.remove()
        raise
    return address


def _give_to_group(path: str, group: str) -> None:
    """Let the group, a name or a gid, write to the socket; OSError if there is no such group, or we may not."""
    try:
        shutil.chown(path, group=int(group) if re.fullmatch(r"[0-9]+", group) else group)
    except LookupError as error:
        raise OSError(f"PLUGIN_UNIX_SOCKET_GROUP={group!r}: there is no such group") from error
    except OSError as error:
        raise OSError(f"PLUGIN_UNIX_SOCKET_GROUP={group!r}: {error}") from error
    os.chmod(path, stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP)
