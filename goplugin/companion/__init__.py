"""The plugin's end of the companion process: starts it and sends it commands. process.py is the companion's end."""

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

LAST_WORDS = 1.0  # seconds for the host to read what the plugin wrote to stderr before it ended


class Companion:
    """The companion process, which ends when this process ends.

    events: a socket. The companion sends its pid, its folder for sockets, and the reason to leave. It reaches its end
        when the companion dies.
    mark: begins each frame on stderr.
    died: the companion's death was logged.
    """

    def __init__(self, state: State) -> None:
        """Start the companion. OSError if the system refuses."""
        stderr, self.stderr = os.pipe()
        self.mark = frames.mark(os.urandom(16).hex())
        self.pid = 0  # until the companion sends it
        self.died = False
        self._folder = ""
        self._lock = threading.Lock()
        # The companion sends the certificate unasked. None until it arrives.
        self._server_cert = None if state.settings.client_cert else ""
        self._child = system.Child(state, self.mark, stderr)
        self.has_died, self.close = self._child.has_died, self._child.close
        os.close(stderr)

    def connect(self) -> None:
        """Complete the start. Call this before the first command. OSError if the companion has ended."""
        self._control, self.events = self._child.connect()

    def end(self) -> None:
        """If the companion would end with this process, wait until it has passed on the last words."""
        self._child.end(2 * LAST_WORDS)

    def resume(self) -> None:
        """Continue the companion if a signal has stopped it: the host waits for its end."""
        with contextlib.suppress(OSError, AttributeError):  # Windows has no SIGCONT
            if self.pid:  # no other process has this pid: the companion's end would have been noticed
                os.kill(self.pid, signal.SIGCONT)

    def read_event(self) -> str:
        """Read from `events`, which must be ready. Return a reason to leave, or "". EOFError if the companion died."""
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
        """Remove the folder for sockets of a companion that has died."""
        with contextlib.suppress(EOFError, OSError):
            self.connect()  # it may have died before the start was complete
            while True:
                self.read_event()
        if self._folder:
            address.remove_folder(self._folder)

    def server_cert(self) -> str:
        """Return our certificate for the handshake line. ValueError if the host's certificate is invalid."""
        if self._server_cert is None:
            self._server_cert = str(self._reply())
        return self._server_cert

    def use_files(self, *files: str) -> None:
        """Use the plugin's own certificate. files: those of TLSFiles. ValueError if a file is missing or invalid."""
        with contextlib.suppress(ValueError):
            self.server_cert()
        self._server_cert = str(self.ask("use_files", *files))

    def path(self) -> str:
        """Return a new path for a Unix socket that only our user can reach. ValueError if there is no place for one."""
        return str(self.ask("path"))

    def ask(self, command: str, *arguments: str) -> Any:
        """Send a command and return the reply. ValueError if the companion reports an error, OSError if it is gone."""
        with self._lock:
            self.tell(command, *arguments)
            return self._reply()

    def tell(self, command: str, *arguments: str) -> None:
        """Send a command that has no reply. This takes no lock: garbage collection may call it at any moment."""
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
