"""The plugin's end of the companion, the process beside it (see process.py)."""

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import threading
import warnings
from typing import Any

from goplugin import outputs
from goplugin.environment import Environment


class Companion:
    """Starts the process and gives it commands. It ends when this process ends."""

    def __init__(self, environment: Environment, parent: int) -> None:
        """Start the process. From now on our stderr leads to it. OSError if the system refuses.

        parent: the process that started the plugin.

        By fork, so that it needs no second start of Python and works however the plugin was packed. By two forks, so
        that it is not a child of ours: os.wait() in the plugin's own code must not meet it.
        """
        self._control, theirs = socket.socketpair()
        stderr, our_stderr = os.pipe()
        self._lock = threading.Lock()
        # The certificate comes without having been asked for; None until it is there.
        self._server_cert = None if environment.client_cert else ""
        plugin = os.getpid()
        self.folder = f"plugin{os.urandom(8).hex()}"  # the name of its folder for sockets
        with warnings.catch_warnings():
            # Python 3.12 warns if there are threads, as a debugger or tracer may have started. None of them is in our
            # way: the process uses nothing that they have.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                if os.fork() == 0:
                    self._control.close()
                    os.close(our_stderr)
                    _run(environment, plugin, parent, theirs, stderr, self.folder)
                os._exit(0)
            finally:
                os._exit(1)  # fork failed; the plugin takes it for a companion that has died
        theirs.close()
        os.close(stderr)
        self._between = child  # the process between us and the companion, which ends at once
        if outputs.host_stdout >= 0:  # not by hand, with --debug
            outputs.send_stderr_to(our_stderr, framed=True)
        os.close(our_stderr)
        # A child by fork that lives on with our end would keep the companion alive.
        os.register_at_fork(after_in_child=self._control.close)

    def reap(self) -> None:
        """Let go of the process between us and the companion. Not done at once, since that costs a millisecond."""
        with contextlib.suppress(ChildProcessError):  # the plugin's code has waited for all children
            os.waitpid(self._between, 0)

    def fileno(self) -> int:
        """Return what poll() reports as hung up when the process has died."""
        return self._control.fileno()

    def server_cert(self) -> str:
        """Return our certificate, for the handshake line. ValueError if the host's cannot be used."""
        if self._server_cert is None:
            self._server_cert = str(self._reply())
        return self._server_cert

    def use_files(self, *files: str) -> None:
        """Use the plugin's own certificate, as in TLSFiles. ValueError if a file is not what it should be."""
        with contextlib.suppress(ValueError):
            self.server_cert()
        self._server_cert = str(self.ask("use_files", *files))

    def ask(self, command: str, *arguments: str) -> Any:
        """Give a command and return the reply. ValueError if the companion could not do it, OSError if it is gone."""
        with self._lock:
            self.tell(command, *arguments)
            return self._reply()

    def tell(self, command: str, *arguments: str) -> None:
        """Give a command that has no reply. Takes no lock: garbage collection may call this at any moment."""
        self._control.sendall(json.dumps([command, *arguments]).encode() + b"\n")

    def _reply(self) -> Any:
        line = b""
        while not line.endswith(b"\n"):
            data = self._control.recv(65536)
            if not data:
                raise OSError("the companion process is gone")
            line += data
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply["reply"]


def is_possible() -> bool:
    """Whether there are fork and Unix sockets, unlike on Windows."""
    return hasattr(os, "fork") and hasattr(socket, "AF_UNIX")


def _run(environment: Environment, plugin: int, parent: int, control: socket.socket, stderr: int, folder: str) -> None:
    """Be the companion. Runs none of the plugin's exit handlers."""
    # These go to the whole process group. The companion must stay until the plugin has finished its calls.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write("companion")  # for ps and top, on Linux
    sys.settrace(None)
    sys.setprofile(None)
    gc.freeze()  # else the first collection would copy all that we share with the plugin
    gc.enable()  # it was off while goplugin is imported
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # stdin is for the plugin's own code
    os.close(null)

    from goplugin import log
    from goplugin.companion.process import Process

    try:
        Process(environment, plugin, parent, control, stderr, folder).run()
    except Exception:  # noqa: BLE001 whatever it is, it must reach the host's log
        log.write = outputs.write_record
        log.get_logger("goplugin.companion").exception("the companion process failed")
