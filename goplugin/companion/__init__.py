"""The plugin's end of the companion, the process beside it (see process.py)."""

import contextlib
import json
import os
import signal
import sys
import threading
from typing import Any

from goplugin import address, frames
from goplugin.state import State

if sys.platform == "win32":
    from goplugin.companion import windows as system
else:
    from goplugin.companion import posix as system

LAST_WORDS = 1.0  # seconds that the host has to read what was written to stderr before the plugin ended


class Companion:
    """Starts the process and gives it commands. It ends when this process ends.

    events: a socket on which it says its pid, its folder for sockets, and why the plugin should leave. It ends if the
        process dies.
    mark: what frames on stderr begin with.
    """

    def __init__(self, state: State) -> None:
        """Start the process. OSError if the system refuses."""
        stderr, self.stderr = os.pipe()
        self.mark = frames.mark(os.urandom(16).hex())
        self.pid = 0  # until it has said it
        self.died = False
        self._folder = ""
        self._lock = threading.Lock()
        # The certificate comes without having been asked for; None until it is there.
        self._server_cert = None if state.settings.client_cert else ""
        self._child = system.Child(state, self.mark, stderr)
        self.has_died, self.close = self._child.has_died, self._child.close
        os.close(stderr)

    def connect(self) -> None:
        """Complete the start, before the first command. OSError if the process has ended."""
        self._control, self.events = self._child.connect()

    def end(self) -> None:
        """If the process would end with this one, wait until it has passed on the last words."""
        self._child.end(2 * LAST_WORDS)

    def resume(self) -> None:
        """Have it go on, if a signal has stopped it: the host waits until it has ended."""
        with contextlib.suppress(OSError, AttributeError):  # Windows has no such signals
            if self.pid:  # it is still its own: we would know of its end
                os.kill(self.pid, signal.SIGCONT)

    def read_event(self) -> str:
        """Return why it wants the plugin to leave, or "". Call it when `events` is ready. EOFError if it has died."""
        data = self.events.recv(4096)
        if not data:
            raise EOFError("the companion process died")
        for line in data.decode().splitlines():
            event, _, text = line.partition(" ")
            if event == "leave":
                return text
            if event == "pid":
                self.pid = int(text)
            else:
                self._folder = text
        return ""

    def remove_folder(self) -> None:
        """Remove its folder for sockets, after it has died."""
        with contextlib.suppress(EOFError, OSError):
            self.connect()  # it may have died before that
            while True:
                self.read_event()
        if self._folder:
            address.remove_folder(self._folder)

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

    def path(self) -> str:
        """Return a path for a Unix socket that only our user can reach. ValueError if that cannot be."""
        return str(self.ask("path"))

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
                raise OSError("the companion process died")
            line += data
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply["reply"]
