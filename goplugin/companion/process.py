"""The companion: a process beside the plugin that does what no thread of the plugin can do.

It passes stderr's lines on to the host, so that no child of the plugin keeps the host waiting. It terminates TLS. It
watches the host. When the host is gone and the plugin does not leave, it kills the plugin. It exits after the plugin.

The plugin sends it commands over a socket pair, in lines of JSON: a command with its arguments, and then the reply.
When the plugin's end closes, the plugin is gone. Over a second socket pair the companion tells the plugin to leave.
"""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from goplugin import frames, log, standard_streams
from goplugin.address import UNIX_SOCKETS, PrivateFolder
from goplugin.companion import LAST_WORDS, system
from goplugin.companion.loop import READ, WRITE, Loop
from goplugin.state import State

PLUGIN_GRACE = 2.5  # seconds for the plugin to leave once the host is gone; it needs at most 1.8

_MOST_PENDING = 1 << 20  # bytes that the host has not taken yet; beyond these we drop our own records

_log = log.get_logger("goplugin.companion")


class Process:
    """The companion. `run` returns when the plugin is gone and its last output has reached the host."""

    def __init__(self, state: State, mark: bytes, control: socket.socket, events: socket.socket, stderr: int) -> None:
        """state: the plugin's, when it started us. mark: begins each frame.

        control, events: sockets to the plugin. stderr: the read end of the plugin's stderr. Our own file descriptor 2
        is the host's pipe.
        """
        self._environment, self._plugin, self._parent = state.settings, state.pid, state.parent
        self._control, self._events = control, events
        self._stderr, self._host = system.reads(stderr), system.writes(standard_streams.STDERR)
        self._loop = Loop()
        self._received = b""  # an unfinished command
        self._plugin_left = False
        self._stderr_ended = False
        self._lines = frames.Decoder(mark)
        self._to_host = b""  # lines that the host has not taken yet
        self._leaves_with_host = True
        self._connections: Any = None  # for AutoMTLS, TLSFiles and multiplexing; imported only then
        self._folder: PrivateFolder | None = None
        self._paths = 0
        self._commands: dict[str, Callable[..., Any]] = {"path": self._path, "use_files": self._use_files}
        self._commands_without_reply: dict[str, Callable[..., None]] = {"stay": self._stay}

    def run(self) -> None:
        """Prepare TLS or multiplexing if the host asked for it. Then serve host and plugin until the plugin is gone."""
        log.send_to(log.HclogHandler(self._log))
        self._tell_plugin(f"pid {os.getpid()}")
        try:
            if self._environment.client_cert:
                self._reply(self._auto_mtls)
            elif self._environment.multiplex:
                self._begin_connections(None)
            if self._folder:
                self._folder.remove_left_behind()
            self._loop.watch(self._control, READ, lambda events: self._on_control())
            self._loop.watch(self._stderr, READ, lambda events: self._on_stderr())
            system.watch_host(self._loop, self._parent, self._host, self._on_host_gone)
            while not self._plugin_left:
                self._loop.run_once()
        finally:
            if self._connections:
                self._connections.close_all()
            if self._folder:
                self._folder.remove()
        self._last_words()

    def _on_host_gone(self, reason: str) -> None:
        if self._leaves_with_host:
            self._leaves_with_host = False
            self._make_leave(reason)

    def _make_leave(self, reason: str) -> None:
        self._tell_plugin(f"leave {reason}")
        self._loop.call_later(PLUGIN_GRACE, self._kill_plugin)

    def _tell_plugin(self, event: str) -> None:
        with contextlib.suppress(OSError):  # it is gone
            self._events.sendall(event.encode() + b"\n")

    def _kill_plugin(self) -> None:
        if not self._plugin_left:  # it holds the control socket, so no other process has its pid
            with contextlib.suppress(OSError):  # on Windows, it may be ending
                os.kill(self._plugin, getattr(signal, "SIGKILL", signal.SIGTERM))  # there, any signal kills

    # The plugin's stderr

    def _on_stderr(self) -> bool:
        """Read from stderr. Return whether there was anything."""
        try:
            data = self._stderr.recv(65536)
        except BlockingIOError:
            return False
        if not data:  # the plugin and its children have closed it
            self._stderr_ended = True
            self._loop.forget(self._stderr)
        self._pass_on(self._lines.decode(data))
        return bool(data)

    def _pass_on(self, lines: bytes) -> None:
        if lines and not self._to_host:
            # Read no more until the host has taken this. Writers then wait, as they would without us.
            self._loop.forget(self._stderr)
            self._loop.watch(self._host, WRITE, lambda events: self._send_to_host())
        self._to_host += lines

    def _send_to_host(self) -> None:
        try:
            self._to_host = self._to_host[self._host.send(self._to_host) :]
        except BlockingIOError:
            return
        except OSError:  # nobody reads the host's pipe: output is lost, as it would be without us
            self._to_host = b""
        if not self._to_host:
            self._loop.forget(self._host)
        if not self._to_host and not self._stderr_ended:
            self._loop.watch(self._stderr, READ, lambda events: self._on_stderr())

    def _log(self, record: bytes) -> None:
        """Write our own log record. This never waits: a host that does not read its log must not stop TLS."""
        if len(self._to_host) < _MOST_PENDING:
            self._pass_on(record)

    def _last_words(self) -> None:
        """Pass on what the plugin wrote before it ended. Later output of its children is lost."""
        end = time.monotonic() + LAST_WORDS
        quiet = time.monotonic() + system.QUIET  # from then on, nothing more can arrive
        is_empty = False
        while (left := end - time.monotonic()) > 0:
            if self._to_host:
                self._loop.run_once(left)
                quiet = time.monotonic() + system.QUIET
            elif is_empty:
                break
            elif not self._stderr_ended and self._on_stderr():
                quiet = time.monotonic() + system.QUIET
            elif not self._stderr_ended and (wait := quiet - time.monotonic()) > 0:
                self._loop.run_once(min(wait, left))
            else:
                is_empty = True
                self._pass_on(self._lines.end())
        system.flush(self._host, LAST_WORDS)

    # The plugin's commands

    def _on_control(self) -> None:
        try:
            data = self._control.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._plugin_left = True
            self._loop.forget(self._control)
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            name, *arguments = json.loads(line)
            if name in self._commands:
                self._reply(self._commands[name], *arguments)
            else:
                self._commands_without_reply[name](*arguments)

    def _reply(self, command: Any, *arguments: Any) -> None:
        try:
            reply = {"reply": command(*arguments)}
        except (OSError, ValueError) as error:
            reply = {"error": str(error)}
        with contextlib.suppress(OSError):  # the plugin is gone
            self._control.sendall(json.dumps(reply).encode() + b"\n")

    def _stay(self) -> None:
        """Let the plugin outlive the host. But `_on_end` still ends it if the host multiplexes."""
        self._leaves_with_host = False

    def _auto_mtls(self) -> str:
        """Begin AutoMTLS, and return our certificate for the handshake line."""
        from goplugin.companion import tls

        return self._begin_connections(tls.auto_mtls_contexts(self._environment.client_cert, self._make_folder()))

    def _use_files(self, *files: str) -> str:
        from goplugin.companion import tls

        return self._begin_connections(tls.file_contexts(tls.TLSFiles(*files)))

    def _begin_connections(self, contexts: Any) -> str:
        from goplugin.companion.connections import Connections
        from goplugin.companion.hop import make_hop

        hop = make_hop(self._path, self._make_folder)
        self._connections = connections = Connections(self._loop, contexts, self._environment, hop, self._on_end)
        self._commands |= {name: getattr(connections, name) for name in ("hop", "listen", "dial", "expect", "open")}
        self._commands_without_reply["close"] = connections.close
        return contexts.server_cert if contexts else ""

    def _on_end(self, reason: str) -> None:
        """Make the plugin leave: the one connection of a multiplexing host has ended, so no host can call it."""
        if reason:
            _log.error("the multiplexed connection to the host has ended: %s", reason)
        self._make_leave("the host has ended the connection")

    def _path(self) -> str:
        """Return a new path for a Unix socket that only our user can reach."""
        if not UNIX_SOCKETS:
            raise OSError("this system has no Unix sockets")
        self._paths += 1
        return os.path.join(self._make_folder(), str(self._paths))

    def _make_folder(self) -> str:
        if not UNIX_SOCKETS:
            import tempfile

            return tempfile.gettempdir()  # on Windows only our user can enter it
        if self._folder and not self._folder.is_there():  # a cleaner removed it
            self._folder.remove()
            self._folder = None
        if not self._folder:
            self._folder = PrivateFolder()
            self._tell_plugin(f"folder {self._folder.path}")
        return self._folder.path


def run(state: State, mark: bytes, control: socket.socket, events: socket.socket, stderr: int) -> None:
    """Be the companion; see Process. Log any failure to the host."""
    try:
        Process(state, mark, control, events, stderr).run()
    except Exception:  # noqa: BLE001
        log.send_to(log.HclogHandler(lambda record: standard_streams.write_all(standard_streams.STDERR, record)))
        _log.exception("the companion process failed")
