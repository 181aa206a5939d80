"""The plugin's end of the companion, the process beside it (see process.py)."""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import warnings
from typing import Any

from goplugin import address, frames, outputs
from goplugin.state import State

LAST_WORDS = 1.0  # seconds that the host has to read what was written to stderr before the plugin ended


class Companion:
    """Starts the process and gives it commands. It ends when this process ends.

    events: a socket on which it says its pid, its folder for sockets, and why the plugin should leave. It ends if the
        process dies.
    mark: what frames on stderr begin with.
    """

    def __init__(self, state: State) -> None:
        """Start the process. OSError if the system refuses.

        By fork, so that it needs no second start of Python and works however the plugin was packed. By two forks, so
        that it is not a child of ours: os.wait() in the plugin's own code must not meet it. But if process 1 is the
        host or the plugin itself, as in a container, by one: the plugin must wait for it at the end, because the host
        would not, and because the container ends with process 1.
        """
        self._control, control = socket.socketpair()
        self.events, events = socket.socketpair()
        stderr, self.stderr = os.pipe()
        self.mark = frames.mark(os.urandom(16).hex())
        self.pid = 0  # until it has said it
        self.died = False
        self._folder = ""
        self._lock = threading.Lock()
        # The certificate comes without having been asked for; None until it is there.
        self._server_cert = None if state.settings.client_cert else ""
        self._is_child = 1 in (os.getpid(), os.getppid())
        with warnings.catch_warnings():
            # Python 3.12 warns if there are threads, as a debugger or tracer may have started. None of them is in our
            # way: the process uses nothing that they have.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._forked = os.fork()
        if self._forked == 0:
            try:
                if self._is_child or os.fork() == 0:
                    _run(state, self.mark, control, events, stderr)
            finally:
                os._exit(0)  # if the second fork failed, the plugin takes that for a companion that has died
        control.close()
        events.close()
        os.close(stderr)

    def has_died(self) -> bool:
        """Whether it has ended already."""
        poll = select.poll()
        poll.register(self._control, select.POLLHUP)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def reap(self) -> None:
        """Let go of the intermediate child of the double fork. Not done at once, since that costs a millisecond."""
        if not self._is_child:
            with contextlib.suppress(ChildProcessError):  # the plugin's code has waited for all children
                os.waitpid(self._forked, 0)

    def end(self) -> None:
        """If it is a child of ours, wait until it has passed on the last words."""
        if self._is_child and self._forked:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)
                self.events.settimeout(2 * LAST_WORDS)
                while self.events.recv(4096):
                    pass
                os.waitpid(self._forked, 0)
            self._forked = 0

    def resume(self) -> None:
        """Have it go on, if a signal has stopped it: the host waits until it has ended."""
        with contextlib.suppress(OSError):
            if self.pid:  # it is still its own: we would know of its end
                os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Let go of it: it ends, or serves the parent of this process alone."""
        self._forked = 0
        for end in (self._control, self.events):
            end.close()

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


def _run(state: State, mark: bytes, control: socket.socket, events: socket.socket, stderr: int) -> None:
    """Be the companion. Runs none of the plugin's exit handlers."""
    # These go to the whole process group. The companion must stay until the plugin has finished its calls.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGTTIN", "SIGTTOU"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    null = outputs.null()
    for standard in (0, outputs.STDOUT):  # stdin is for the plugin's own code
        os.dup2(null, standard)
    # Not the host's stdout, which would not end with the plugin, nor what the host has given to the plugin besides.
    kept = (outputs.STDERR, control.fileno(), events.fileno(), stderr)
    for fd in outputs.open_descriptors():
        if fd > outputs.STDERR and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name_file:
        name_file.write("companion")  # for ps and top, on Linux
    sys.settrace(None)
    sys.setprofile(None)
    gc.freeze()  # else the first collection would copy all that we share with the plugin
    gc.enable()  # it was off while goplugin is imported

    from goplugin import log
    from goplugin.companion.process import Process

    try:
        Process(state, mark, control, events, stderr).run()
    except Exception:  # noqa: BLE001 whatever it is, it must reach the host's log
        log.send_to(log.HclogHandler(lambda record: outputs.write_all(outputs.STDERR, record)))
        log.get_logger("goplugin.companion").exception("the companion process failed")
