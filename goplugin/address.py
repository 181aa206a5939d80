"""Where the plugin listens; mirrors serverListener in go-plugin's server.go. Plugin and companion both use it."""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Callable
from typing import NamedTuple

from goplugin.environment import Environment

_LONGEST_FOLDER = 75  # bytes of a folder's path: a socket's path has 104 at least, and ours must fit behind it


class Address(NamedTuple):
    """network: "tcp" or "unix", as Go names them. address: HOST:PORT, or the path of a socket."""

    network: str
    address: str

    def target(self) -> str:
        """Return the address as grpc spells it. ValueError if it is not an address."""
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


class NoTCP(OSError):
    """TCP is refused altogether, not a certain port: the loopback interface is down, or a sandbox forbids it."""


def listening_socket(environment: Environment, path: Callable[[], str]) -> tuple[socket.socket, Address]:
    """Return a socket that listens where the host wants it.

    That is a Unix socket in the host's folder for sockets if it has named one (container runners do), else a TCP port
    of 127.0.0.1. Where there is no TCP it is a Unix socket, as in Go, at `path()`. ValueError if a setting cannot be
    used, OSError if the system refuses.
    """
    folder = environment.socket_dir
    if not folder:
        try:
            return _tcp_socket(environment.ports)
        except NoTCP:
            return _unix_socket(path())
    if re.search(r"[|\n]", folder):
        raise ValueError(f"the folder for sockets, {folder!r}, has a character that the handshake line cannot carry")
    listener, address = _unix_socket(os.path.join(folder, f"plugin{os.urandom(4).hex()}"))
    try:
        give_to_group(address, environment.socket_group)
    except OSError:
        listener.close()
        raise
    return listener, address


def _tcp_socket(ports: range) -> tuple[socket.socket, Address]:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("127.0.0.1", 1))  # sends nothing; fails if the loopback interface is down
    except OSError as error:
        raise NoTCP from error
    # From a random port on, not from the lowest as in Go: plugins that start together would race for each port in turn,
    # and a caller that still knows the port of a plugin that has left would reach its successor.
    first = int.from_bytes(os.urandom(4), "big") % len(ports)
    for port in (*ports[first:], *ports[:first]):
        try:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            raise NoTCP from error
        if os.name == "posix":  # on Windows the option would let two plugins share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError as error:
            listener.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise NoTCP from error
            continue
        return listener, Address("tcp", f"127.0.0.1:{listener.getsockname()[1]}")
    raise OSError(
        f"no port of 127.0.0.1 from PLUGIN_MIN_PORT={ports[0]} to PLUGIN_MAX_PORT={ports[-1]} is free:"
        " end programs that listen there, or have the host allow more ports"
    )


def _unix_socket(path: str) -> tuple[socket.socket, Address]:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        listener.listen()
    except OSError as error:
        listener.close()
        raise OSError(f"no socket at {path} ({len(os.fsencode(path))} bytes): {error}") from error
    return listener, Address("unix", path)


def give_to_group(address: Address, group: str) -> None:
    """Let the group, a name or a gid, use the socket. OSError, and the socket's file removed, if that cannot be."""
    if not group or address.network != "unix":
        return
    import shutil

    try:
        shutil.chown(address.address, group=int(group) if re.fullmatch(r"[0-9]+", group) else group)
        os.chmod(address.address, 0o660)
    except (LookupError, OSError) as error:
        address.remove()
        raise OSError(f"PLUGIN_UNIX_SOCKET_GROUP={group!r}: {error}") from error


def make_private_folder(name: str) -> str:
    """Make a folder that only our user can enter, for sockets, and return its path. OSError if that cannot be.

    It is made where Python's tempfile would make it, but never in the working directory, which is the user's.
    """
    reasons = []
    for folder in _temporary_folders():
        path = os.path.join(folder, name)
        if len(os.fsencode(folder)) > _LONGEST_FOLDER:
            reasons.append(f"{folder}: too long for a socket's path")
            continue
        try:
            os.mkdir(path, mode=0o700)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
        else:
            return path
    raise OSError(f"no temporary folder for sockets: set TMPDIR to a folder that can be written ({'; '.join(reasons)})")


def remove_private_folder(name: str) -> None:
    """Remove the folder of that name, wherever it was made."""
    import shutil

    for folder in _temporary_folders():
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def _temporary_folders() -> list[str]:
    named = [os.environ.get(variable, "") for variable in ("TMPDIR", "TEMP", "TMP")]
    return [folder for folder in (*named, "/tmp", "/var/tmp", "/usr/tmp") if os.path.isabs(folder)]
