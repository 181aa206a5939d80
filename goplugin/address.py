"""Addresses, listening sockets, and a private folder for Unix sockets. Plugin and companion both use it.

Mirrors serverListener in go-plugin's server.go.
"""

import contextlib
import errno
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from goplugin.environment import Environment

if sys.platform != "win32":
    import fcntl

UNIX_SOCKETS = hasattr(socket, "AF_UNIX")  # not on Windows

_LONGEST_FOLDER = 97  # bytes of the private folder's path; leaves room for a socket's name within 104 bytes

# Connections that may wait to be accepted, if the system allows as many. A caller that finds no room tries again after
# a second.
_BACKLOG = 4096


class Address(NamedTuple):
    """network: "tcp" or "unix", as Go names them. address: HOST:PORT, or the path of a socket."""

    network: str
    address: str

    def target(self) -> str:
        """Return the address as grpc spells it. ValueError if it is malformed, or if the system lacks the network."""
        if self.network == "unix" and self.address and UNIX_SOCKETS:
            return "unix:" + re.sub("[%#?]", lambda match: f"%{ord(match[0]):02X}", self.address)
        if self.network == "tcp" and re.fullmatch(r".+:[0-9]{1,5}", self.address):
            return self.address
        raise ValueError(f"not an address: network {self.network!r}, address {self.address!r}")

    def resolve(self) -> "Address":
        """Return the address with an IP address instead of a host name. OSError if the system cannot resolve it."""
        if self.network == "unix":
            return self
        host, _, port = self.address.rpartition(":")
        family, _, _, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        number = f"[{where[0]}]" if family == socket.AF_INET6 else where[0]
        return Address("tcp", f"{number}:{port}")

    def connect(self, timeout: float) -> socket.socket:
        """Return a socket that is connected to the address. timeout: in seconds; the socket keeps it."""
        if self.network == "unix":
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(timeout)
            try:
                connected.connect(self.address)
            except OSError:
                connected.close()
                raise
            return connected
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout)

    def remove(self) -> None:
        """Remove the socket's file, if it still exists."""
        if self.network == "unix":
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.address)


def listening_socket(environment: Environment, path: Callable[[], str]) -> tuple[socket.socket, Address]:
    """Return a socket that listens where the host wants it, and its address.

    It is a Unix socket if the host named a folder for sockets, as container runners do. Otherwise it is a TCP port of
    127.0.0.1. Without TCP it is a Unix socket at `path()`, as in Go. Systems without Unix sockets use TCP.
    ValueError if a setting of the host is not usable, OSError if the system refuses.
    """
    folder = environment.socket_dir
    if not folder or not UNIX_SOCKETS:
        try:
            return _tcp_socket(environment.ports)
        except OSError:
            return unix_socket(path())
    if re.search(r"[|\n\ud800-\udfff]", folder):
        raise ValueError(f"PLUGIN_UNIX_SOCKET_DIR={folder!r} has a character that the handshake line cannot carry")
    listener, address = unix_socket(os.path.join(folder, f"plugin{os.urandom(4).hex()}"))
    try:
        give_to_group(address, environment.socket_group)
    except OSError:
        listener.close()
        raise
    return listener, address


def _tcp_socket(ports: range) -> tuple[socket.socket, Address]:
    """Return a socket that listens on a free port, and its address.

    OSError if TCP does not work at all: the loopback interface is down, or a sandbox forbids it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("127.0.0.1", 1))  # sends nothing; fails if the loopback interface is down
    # Start at a random port. Go starts at the lowest; then plugins that start together race for each port in turn, and
    # a caller that still knows the port of a plugin that has left reaches its successor.
    first = int.from_bytes(os.urandom(4), "big") % len(ports)
    for port in (*ports[first:], *ports[:first]):
        try:
            listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
        else:
            return listener, Address("tcp", f"127.0.0.1:{listener.getsockname()[1]}")
    raise ValueError(
        f"no port of 127.0.0.1 from PLUGIN_MIN_PORT={ports[0]} to PLUGIN_MAX_PORT={ports[-1]} is free:"
        " end programs that listen there, or let the host allow more ports"
    )


def unix_socket(path: str) -> tuple[socket.socket, Address]:
    """Return a Unix socket that listens at the path, and its address."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot make a socket at {path} ({len(os.fsencode(path))} bytes): {error}") from error
    return listener, Address("unix", path)


def give_to_group(address: Address, group: str) -> None:
    """Let the group, a name or a gid, use the Unix socket. If that fails, remove the socket's file; OSError."""
    if not group or address.network != "unix":
        return
    import shutil

    try:
        shutil.chown(address.address, group=int(group) if re.fullmatch(r"[0-9]+", group) else group)
        os.chmod(address.address, 0o660)
    except (LookupError, OSError) as error:
        address.remove()
        raise OSError(f"PLUGIN_UNIX_SOCKET_GROUP={group!r}: {error}") from error


class PrivateFolder:
    """A folder for sockets that only our user can enter. We recognize it by its descriptor, not by its name.

    It is made where Python's tempfile would make it, but never in the working directory: that is the user's.
    OSError if no temporary folder is writable.
    """

    def __init__(self) -> None:
        reasons = []
        for folder in _temporary_folders():
            self.path = os.path.join(folder, f"goplugin-{os.urandom(6).hex()}")
            try:
                if len(self.path.encode()) > _LONGEST_FOLDER:
                    raise OSError(errno.ENAMETOOLONG, "too long for a socket's path")
                os.mkdir(self.path, mode=0o700)
                self._descriptor = os.open(self.path, os.O_RDONLY)
                self._try_out()
            except (OSError, UnicodeEncodeError) as error:
                reasons.append(f"{folder!a}: {error.strerror if isinstance(error, OSError) else 'not UTF-8'}")
                with contextlib.suppress(OSError, UnicodeEncodeError):
                    os.rmdir(self.path)
            else:
                return
        raise OSError(f"no temporary folder for sockets: set TMPDIR to a writable folder ({'; '.join(reasons)})")

    def _try_out(self) -> None:
        """Write a file, to find out whether the disk is full, and lock the folder."""
        trial = os.path.join(self.path, "trial")
        try:
            with open(trial, "wb") as file:
                file.write(bytes(4096))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(trial)
        # Programs that clean /tmp, such as systemd-tmpfiles, keep locked folders. Network file systems may refuse.
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def is_there(self) -> bool:
        """Whether the path is still our folder: a cleaner may have removed it, and another user may have made one."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._descriptor))
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        if self.is_there():
            remove_folder(self.path)
        os.close(self._descriptor)

    def remove_left_behind(self) -> None:
        """Remove the folders beside it that killed companions left: our user's, over a minute old, and not locked."""
        with contextlib.suppress(OSError), os.scandir(os.path.dirname(self.path)) as beside:
            for other in beside:
                if re.fullmatch(r"goplugin-[0-9a-f]{12}", other.name) and other.is_dir(follow_symlinks=False):
                    with contextlib.suppress(OSError):
                        _remove_if_left_behind(other.path)


def _remove_if_left_behind(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if time.time() - os.fstat(descriptor).st_mtime > 60:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_folder(path)
    finally:
        os.close(descriptor)


def remove_folder(path: str) -> None:
    """Remove the private folder at this path, if our user owns it."""
    import shutil

    with contextlib.suppress(OSError):
        if os.lstat(path).st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)


def _temporary_folders() -> list[str]:
    named = [os.environ.get(variable, "") for variable in ("TMPDIR", "TEMP", "TMP")]
    return [folder for folder in (*named, "/tmp", "/var/tmp", "/usr/tmp") if os.path.isabs(folder)]
