"""The companion: a process beside the plugin that does what a thread of the plugin cannot.

It writes stderr's lines to the host, so that no child of the plugin keeps the host waiting. It ends TLS. It ends a
plugin that cannot leave by itself when the host is gone. It leaves when the plugin has.

The plugin talks to it over a socket pair, in lines of JSON: a command with its arguments, and the reply. When the
plugin's end of that closes, the plugin is gone.
"""

import contextlib
import fcntl
import functools
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from goplugin import address, frames, log, outputs
from goplugin.companion.loop import READ, WRITE, Loop
from goplugin.environment import Environment
from goplugin.hostwatch import HostWatch, open_process

PLUGIN_GRACE = 2.5  # seconds that the plugin has to leave once the host is gone; it takes 1.8 at most
LAST_WORDS = 1.0  # seconds that the host has to read what was written to stderr before the plugin ended

_MOST_PENDING = 1 << 20  # bytes that the host has not taken yet, beyond which our own records are dropped


class Process:
    """The companion; `run` returns when the plugin is gone and nothing is left to do."""

    def __init__(
        self, environment: Environment, plugin: int, parent: int, control: socket.socket, stderr: int, folder: str
    ) -> None:
        """plugin, parent: pids of the plugin, and of what started it. stderr: the pipe that the plugin writes to.

        folder: the name of our folder for sockets, by which the plugin can remove it should we be killed.

        Our own file descriptor 2 is still the host's stderr.
        """
        self._environment, self._plugin, self._control, self._stderr = environment, plugin, control, stderr
        self._loop = Loop()
        self._received = b""  # of commands
        self._plugin_left = False
        self._stderr_ended = False
        self._lines = frames.Decoder()
        self._workers: dict[int, int] = {}  # pids, by pidfd where there is such a thing
        self._to_host = b""  # lines that the host has not taken yet
        self._host = HostWatch(parent, (outputs.host_stdout, outputs.host_stderr))
        self._leaves_with_host = outputs.host_stdout >= 0  # not with --debug
        self._kill_at: float | None = None
        self._relays: Any = None  # for AutoMTLS and multiplexing, imported only then
        self._folder_name, self._folder = folder, ""  # name; path, once it is made
        self._paths = 0
        self._commands: dict[str, Callable[..., Any]] = {"path": self._path, "use_files": self._use_files}
        self._commands_without_reply: dict[str, Callable[..., None]] = {"stay": self._stay}

    def run(self) -> None:
        """Prepare TLS or multiplexing if the host asked for it, then serve host and plugin until the plugin is gone."""
        log.write = self._log
        os.set_blocking(self._stderr, False)
        try:
            if self._environment.client_cert:
                self._reply(self._auto_mtls)
            elif self._environment.multiplex:
                self._begin_relays(None)
            self._loop.watch(self._control, READ, lambda events: self._on_control())
            self._loop.watch(self._stderr, READ, lambda events: self._on_stderr())
            for fd, events in self._host.fds() if self._leaves_with_host else ():
                self._loop.watch(fd, events, functools.partial(self._on_host, fd))
            while not self._plugin_left:
                self._loop.run_once(self._timeout())
        finally:
            if self._relays:
                self._relays.close_all()
            if self._folder:
                address.remove_private_folder(self._folder_name)
        self._last_words()
        self._kill_workers()

    def _timeout(self) -> float | None:
        """Do what is due, and return the seconds until the next thing is."""
        times = [self._relays.expire() if self._relays else None]
        if self._kill_at is not None:
            left = self._kill_at - time.monotonic()
            if left <= 0:
                self._kill_at = None
                os.kill(self._plugin, signal.SIGKILL)  # it holds the control socket: the pid is still its own
            else:
                times.append(left)
        elif self._leaves_with_host and self._host.timeout():
            self._on_host(-1)
            times.append(self._host.timeout())
        return min((seconds for seconds in times if seconds is not None), default=None)

    def _on_host(self, fd: int, events: int = 0) -> None:
        if fd >= 0:
            self._loop.forget(fd)
        if self._leaves_with_host and self._host.gone(fd):
            self._leaves_with_host = False
            self._kill_at = time.monotonic() + PLUGIN_GRACE

    # What is written to stderr

    def _on_stderr(self) -> bool:
        """Read what was written; whether there was anything."""
        try:
            data = os.read(self._stderr, 65536)
        except BlockingIOError:
            return False
        if not data:  # nobody has our stderr any more
            self._stderr_ended = True
            self._loop.forget(self._stderr)
        self._pass_on(self._lines.decode(data))
        while self._lines.workers:
            self._add_worker(self._lines.workers.pop())
        return bool(data)

    def _add_worker(self, pid: int) -> None:
        """A child of multiprocessing: nobody else ends it if the plugin is killed."""
        with contextlib.suppress(OSError):
            if os.getpgid(pid) != os.getpgrp():
                return  # any child can write such a frame
        pidfd = open_process(pid)
        self._workers[pidfd if pidfd >= 0 else -pid] = pid
        if pidfd >= 0:
            self._loop.watch(pidfd, READ, lambda events: self._forget_worker(pidfd))

    def _forget_worker(self, pidfd: int) -> None:
        self._loop.forget(pidfd)
        os.close(pidfd)
        del self._workers[pidfd]

    def _kill_workers(self) -> None:
        for pidfd, pid in self._workers.items():
            with contextlib.suppress(OSError):
                if pidfd >= 0:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                elif os.getpgid(pid) == os.getpgrp():  # else the pid is another process's by now
                    os.kill(pid, signal.SIGKILL)

    def _pass_on(self, lines: bytes) -> None:
        if lines and not self._to_host:
            # Nothing more is read until the host has taken this: then writers wait, as they would without us.
            self._loop.forget(self._stderr)
            self._loop.watch(outputs.STDERR, WRITE, lambda events: self._send_to_host())
        self._to_host += lines

    def _send_to_host(self) -> None:
        try:
            # As much as a pipe takes without making us wait, once it is ready.
            self._to_host = self._to_host[os.write(outputs.STDERR, self._to_host[: select.PIPE_BUF]) :]
        except BlockingIOError:
            return
        except OSError:  # nobody reads it any more: what is written is lost, as it would be without us
            self._to_host = b""
        if not self._to_host:
            self._loop.forget(outputs.STDERR)
        if not self._to_host and not self._stderr_ended:
            self._loop.watch(self._stderr, READ, lambda events: self._on_stderr())

    def _log(self, record: bytes) -> None:
        """Write a record of our own. It never waits: a host that does not read its log must not stop TLS."""
        if len(self._to_host) < _MOST_PENDING:
            self._pass_on(record)

    def _last_words(self) -> None:
        """Pass on what was written before the plugin ended. Its children have no reader from now on."""
        end = time.monotonic() + LAST_WORDS
        is_empty = False
        while (left := end - time.monotonic()) > 0:
            if self._to_host:
                self._loop.run_once(left)
            elif is_empty:
                break
            elif not self._on_stderr():
                is_empty = True
                self._pass_on(self._lines.end())

    # Commands of the plugin

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
        """The plugin does not leave with the host."""
        self._leaves_with_host = False

    def _auto_mtls(self) -> str:
        """Return our certificate."""
        from goplugin.companion import tls

        return self._begin_relays(tls.auto_mtls_contexts(self._environment.client_cert, self._make_folder()))

    def _use_files(self, *files: str) -> str:
        from goplugin.companion import tls

        return self._begin_relays(tls.file_contexts(tls.TLSFiles(*files)))

    def _begin_relays(self, contexts: Any) -> str:
        from goplugin.companion.relay import Relays

        self._relays = relays = Relays(self._loop, contexts, self._environment, self._path, self._on_end)
        self._commands |= {name: getattr(relays, name) for name in ("listen", "dial", "expect", "open")}
        self._commands_without_reply["close"] = relays.close
        return contexts.server_cert if contexts else ""

    def _on_end(self, reason: str) -> None:
        """The one connection of a host that multiplexes is over. Nobody can call the plugin any more: it leaves."""
        if reason:
            log.get_logger("goplugin.companion").error("the multiplexed connection to the host has ended: %s", reason)
        with contextlib.suppress(ProcessLookupError):
            if not self._plugin_left:
                os.kill(self._plugin, signal.SIGTERM)
        self._kill_at = time.monotonic() + PLUGIN_GRACE

    def _path(self) -> str:
        """Return a path for a Unix socket that only our user can reach."""
        self._paths += 1
        return os.path.join(self._make_folder(), str(self._paths))

    def _make_folder(self) -> str:
        if not os.path.isdir(self._folder):  # not made yet, or somebody has removed it
            self._folder = address.make_private_folder(self._folder_name)
            # Programs that clean /tmp leave alone what is locked (systemd-tmpfiles does).
            fcntl.flock(os.open(self._folder, os.O_RDONLY), fcntl.LOCK_SH)
        return self._folder
