"""Where the plugin listens, and how it reaches the host's listeners; mirrors serverListener in go-plugin's server.go.

The TLS terminator uses it too, which starts before `import grpc` and does without.
"""

import contextlib
import os
import re
import socket
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import grpc

from goplugin.environ import host_environ


class Address(NamedTuple):
    """network: "tcp" or "unix", as Go names them. address: HOST:PORT, or the path of a socket."""

    network: str
    address: str

    def target(self) -> str:
        """The address as grpc spells it, for a server to bind or a channel to dial. ValueError if it is none."""
        if self.network == "unix" and self.address:
            return "unix:" + re.sub("[%#?]", lambda match: f"%{ord(match[0]):02X}", self.address)
        if self.network == "tcp" and re.fullmatch(r".+:[0-9]{1,5}", self.address):
            return self.address
        raise ValueError(f"not an address: network {self.network!r}, address {self.address!r}")

    def remove(self) -> None:
        """Remove the socket's file, if there is one left."""
        if self.network == "unix":
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.address)


class Transport(Protocol):
    """How host and plugin connect: Plain, or one of automtls.py."""

    @property
    def server_cert(self) -> str:
        """The handshake's sixth field. ValueError says why there is none."""

    def listen(self, server: "grpc.Server") -> Address:
        """Bind the server, and return where the host finds it. ValueError or OSError say why it cannot."""

    def dial(self, address: Address, options: Any) -> "grpc.Channel":
        """A channel to where the host listens. ValueError if that is no address."""

    def close(self, address: Address) -> None:
        """What `listen` returned is not needed any more."""

    def stop(self) -> None:
        """Nothing is needed any more."""


class Plain:
    """No TLS: who can reach the address can call."""

    server_cert = ""

    def listen(self, server: "grpc.Server") -> Address:
        """Have grpc itself listen where the host wants it."""
        while True:
            # Looked for first: grpc does not say why it cannot listen, and logs each port that it cannot have.
            look, address = listening_socket()
            look.close()
            address.remove()
            try:
                server.add_insecure_port(address.target())
            except RuntimeError:
                continue  # somebody else took it since the look
            give_to_group(address)
            return address

    def dial(self, address: Address, options: Any) -> "grpc.Channel":
        """Straight to the host."""
        import grpc

        return grpc.insecure_channel(address.target(), options)

    def close(self, address: Address) -> None:
        """Grpc has closed it; the file of a Unix socket stays."""
        address.remove()

    def stop(self) -> None:
        """There is nothing to stop."""


def listening_socket() -> tuple[socket.socket, Address]:
    """A socket where the host wants it: a Unix socket in PLUGIN_UNIX_SOCKET_DIR, else a TCP port of 127.0.0.1.

    ValueError for a setting that is none, OSError if the system refuses.
    """
    folder = host_environ.get("PLUGIN_UNIX_SOCKET_DIR")
    return _unix_socket(folder) if folder else _tcp_socket()


def _tcp_socket() -> tuple[socket.socket, Address]:
    low, high = _port("PLUGIN_MIN_PORT"), _port("PLUGIN_MAX_PORT")
    if low > high:
        raise ValueError(f"PLUGIN_MIN_PORT={low} is greater than PLUGIN_MAX_PORT={high}")
    ports = range(low, high + 1)
    # Not always from the lowest on, as in Go: plugins started at once would race for each port in turn, and a
    # caller that still knows the port of a plugin that has left would reach its successor.
    first = int.from_bytes(os.urandom(4), "big") % len(ports)
    for port in (*ports[first:], *ports[:first]):  # 0 is any port
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name == "posix":  # elsewhere the option means that a port in use may be had
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError:
            listener.close()
            continue
        return listener, Address("tcp", f"127.0.0.1:{listener.getsockname()[1]}")
    raise OSError(f"no port of 127.0.0.1 from PLUGIN_MIN_PORT={low} to PLUGIN_MAX_PORT={high} is free")


def _port(name: str) -> int:
    text = host_environ.get(name, "") or "0"
    if not re.fullmatch(r"\+?0*[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError(f"{name}={text!r} is not a port: it must be a number from 0 to 65535")
    return int(text)


def _unix_socket(folder: str) -> tuple[socket.socket, Address]:
    """A Unix socket of a new name in the folder. ValueError or OSError say why there cannot be one."""
    if re.search(r"[|\n]", folder):
        raise ValueError(f"the folder for sockets, {folder!r}, has a character that the handshake line cannot carry")
    path = os.path.join(folder, f"plugin{os.urandom(4).hex()}")
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        listener.listen()
    except OSError as error:
        listener.close()
        raise OSError(f"no socket at {path} ({len(os.fsencode(path))} bytes): {error}") from error
    return listener, Address("unix", path)


def give_to_group(address: Address) -> None:
    """Let PLUGIN_UNIX_SOCKET_GROUP, a name or a gid, write to the socket; OSError if that cannot be."""
    group = host_environ.get("PLUGIN_UNIX_SOCKET_GROUP")
    if not group or address.network != "unix":
        return
    import shutil

    try:
        shutil.chown(address.address, group=int(group) if re.fullmatch(r"[0-9]+", group) else group)
        os.chmod(address.address, 0o660)
    except (LookupError, OSError) as error:
        address.remove()
        raise OSError(f"PLUGIN_UNIX_SOCKET_GROUP={group!r}: {error}") from error
