"""The TLS terminator: a process between host and grpc, which ends TLS and lets in who holds the host's key.

Terminator is the plugin's side, run() the process. They talk over a socket pair, in lines of JSON: a command, and
its reply if it has one. When either end of it closes, the other one knows that its partner is gone.

host --- TLS, TCP or Unix socket ---> terminator --- Unix socket in a folder of mode 0700 ---> grpc.Server
grpc.Channel --- Unix socket in that folder ---> terminator --- TLS ---> what the host serves under a broker's id
"""

import contextlib
import gc
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

from goplugin.environ import host_environ
from goplugin.listener import Address

if TYPE_CHECKING:
    import grpc

    from goplugin.automtls import TLSFiles

_LONGEST_FOLDER = 75  # bytes of a temporary folder's path that leave room for ours and its sockets, of 104 at least


class Terminator:
    """The plugin's side. A Transport (see listener.py)."""

    def __init__(self, client_cert: str = "", files: "TLSFiles | None" = None) -> None:
        """Start the process, for the host with this certificate, PEM, or with files of the plugin's own.

        By fork: so it needs no second start of Python, and works however the plugin was packed.
        """
        import threading

        temporary = os.environ.get("TMPDIR", "/tmp")
        if len(os.fsencode(temporary)) > _LONGEST_FOLDER:
            temporary = "/tmp"
        self._folder = os.path.join(temporary, f"plugin{os.urandom(8).hex()}")
        os.mkdir(self._folder, mode=0o700)
        self._control, theirs = socket.socketpair()
        # A child of the plugin that lived on with our end would keep the terminator alive.
        os.register_at_fork(after_in_child=self._control.close)
        self._lock = threading.Lock()
        self._count = 0
        self._pid = os.fork()
        if self._pid == 0:
            try:
                run(theirs, self._folder, client_cert, files)
            finally:
                os._exit(1)
        theirs.close()
        self._server_cert: str | None = None

    def fileno(self) -> int:
        """What poll() reports as hung up when the process is gone."""
        return self._control.fileno()

    @property
    def server_cert(self) -> str:
        """Our certificate, for the handshake line. ValueError if the host's, or the plugin's own, is none."""
        if self._server_cert is None:
            self._server_cert = str(self._reply())
        return self._server_cert

    def listen(self, server: "grpc.Server") -> Address:
        """Have grpc listen on a Unix socket, and the terminator in front of it where the host finds us."""
        assert self.server_cert is not None  # the first reply comes first
        plain = self._plain()
        server.add_insecure_port(plain.target())
        return Address(*self._ask("listen", *plain))

    def dial(self, address: Address, options: Any) -> "grpc.Channel":
        """Through the terminator, which checks the host's certificate."""
        import weakref

        import grpc

        address.target()  # ValueError if it is none
        plain = self._plain()
        self._ask("dial", *plain, *address)
        channel = grpc.insecure_channel(plain.target(), options)
        weakref.finalize(channel, self.close, plain).atexit = False
        return channel

    def close(self, address: Address) -> None:
        """No reply is waited for, nor a lock taken: the collection of a channel may call this at any moment."""
        with contextlib.suppress(OSError):  # it is gone, and with it the address
            self._tell("close", *address)

    def stop(self) -> None:
        """End the process; its folder goes with it."""
        self._control.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(ChildProcessError):  # the plugin's code may have waited for any child
            os.waitpid(self._pid, 0)
        _remove(self._folder)

    def _plain(self) -> Address:
        with self._lock:
            self._count += 1
            return Address("unix", os.path.join(self._folder, str(self._count)))

    def _tell(self, *command: str) -> None:
        import json

        self._control.sendall(json.dumps(command).encode() + b"\n")

    def _ask(self, *command: str) -> Any:
        with self._lock:
            self._tell(*command)
            return self._reply()

    def _reply(self) -> Any:
        import json

        line = b""
        while not line.endswith(b"\n"):
            data = self._control.recv(65536)
            if not data:
                raise OSError("the TLS terminator is gone")
            line += data
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply["reply"]


of_host: Terminator | None = None


def start() -> None:
    """Start the terminator of AutoMTLS, if the host asked for that and the system has what it takes."""
    global of_host
    client_cert = host_environ.get("PLUGIN_CLIENT_CERT")
    if client_cert and available():
        of_host = Terminator(client_cert)


def available() -> bool:
    """Whether there are fork and Unix sockets, unlike on Windows."""
    return hasattr(os, "fork") and hasattr(socket, "AF_UNIX")


def run(control: socket.socket, folder: str, client_cert: str, files: "TLSFiles | None") -> None:
    """The process; returns when the plugin is gone. It was forked, and runs no exit handlers of the plugin."""
    import json

    gc.enable()  # this process was forked while goplugin was being imported, and without it (see __init__.py)
    # Ctrl-C is ignored already. It leaves with the plugin, which has calls to finish after a SIGTERM, not before.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    from goplugin import automtls, log
    from goplugin.relay import Relays

    def reply(**fields: Any) -> None:
        control.sendall(json.dumps(fields).encode() + b"\n")

    try:
        try:
            contexts = automtls.file_contexts(files) if files else automtls.auto_mtls_contexts(client_cert, folder)
        except ValueError as error:
            reply(error=str(error))
            return
        reply(reply=contexts.server_cert)
        relays = Relays(contexts)
        received = b""

        def command() -> None:
            nonlocal received
            data = control.recv(65536)
            if not data:
                raise EOFError
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                name, *arguments = json.loads(line)
                if name == "close":
                    relays.close(*arguments)
                    continue
                try:
                    reply(reply=getattr(relays, name)(*arguments))
                except (OSError, ValueError) as error:
                    reply(error=str(error))

        with contextlib.suppress(EOFError, ConnectionError):
            relays.run(control, command)
        relays.close_all()
    except Exception:
        log.set_up()
        log.get_logger("goplugin.automtls").exception("the TLS terminator failed")
        raise
    finally:
        _remove(folder)


def _remove(folder: str) -> None:
    """The folder and the sockets in it; plugin and terminator both do it, since either may be killed."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))
        os.rmdir(folder)
