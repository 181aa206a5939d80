"""The companion on Windows: it starts with the plugin's command, and threads connect pipes to sockets for select().

Windows has no fork, and its select() waits only for sockets. The functions are those of posix.py.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from goplugin import environment, standard_streams
from goplugin.companion.loop import MOST_SOCKETS, READ, Loop
from goplugin.state import State

VARIABLE = "GOPLUGIN_COMPANION"  # with this variable, the plugin's command becomes the companion

QUIET = 0.1  # seconds until bytes written to a pipe can be read

_LOOK = 0.5  # seconds between checks whether anybody reads the host's stderr

# From winnt.h, winbase.h, winerror.h and ntifs.h.
_SYNCHRONIZE, _INFINITE, _NO_SUCH_PROCESS = 0x100000, 0xFFFFFFFF, 87
_PIPE_LOCAL_INFORMATION, _PIPE_STATE, _CLOSING = 24, 8, 4

if sys.platform == "win32":
    _kernel, _nt = ctypes.WinDLL("kernel32", use_last_error=True), ctypes.WinDLL("ntdll")
else:  # for mypy on other systems
    _kernel: Any = None
    _nt: Any = None


class Child:
    """Starts the companion with the plugin's own command. It starts up while the plugin imports grpc."""

    def __init__(self, state: State, mark: bytes, stderr: int) -> None:
        """Start the companion. OSError if the system refuses. Process describes the arguments."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._tokens = [os.urandom(16).hex() for _ in range(2)]  # they identify the connections control and events
        said = [self._listener.getsockname()[1], self._tokens, mark.decode(), state.pid, state.parent]
        self._process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            # PyInstaller's one-file programs must unpack themselves again for the companion, because it ends last.
            env={**os.environ, **state.variables, VARIABLE: json.dumps(said), "PYINSTALLER_RESET_ENVIRONMENT": "1"},
            stdin=stderr,
            stdout=subprocess.DEVNULL,
            stderr=state.standard_streams.host_stderr if state.by_host else None,
        )
        self._connections: dict[str, socket.socket] = {}  # by token

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Wait until the companion has connected, and return control and events. OSError if it ends instead.

        Strangers may connect too, but they do not know the tokens.
        """
        waiting: list[socket.socket] = []
        while len(self._connections) < 2:
            if self.has_died():
                raise OSError(f"the companion ended at once, exit code {self._process.returncode}")
            for ready in select.select([self._listener, *waiting[-200:]], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # the caller has left
                    if ready is self._listener:
                        waiting.append(ready.accept()[0])
                        continue
                    waiting.remove(ready)
                    token = ready.recv(32).decode(errors="replace")
                    if token in self._tokens:
                        self._connections[token] = _without_delay(ready)
        for other in (self._listener, *waiting):
            other.close()
        control, events = map(self._connections.__getitem__, self._tokens)
        return control, events

    def has_died(self) -> bool:
        """Whether the companion has ended."""
        return self._process.poll() is not None

    def end(self, seconds: float) -> None:
        """Do not wait: the companion outlives this process until it has passed on the last words."""
        self._process.returncode = 0  # otherwise subprocess would warn that it still runs

    def close(self) -> None:
        """Close our sockets. Then the companion ends."""
        self.end(0)
        for connection in (self._listener, *self._connections.values()):
            connection.close()


def serve(state: State, said: str) -> None:
    """Be the companion that `Child` started, and then exit. said: the variable's text, which completes the state."""
    for name in ("SIGINT", "SIGBREAK"):  # the console sends them to all its processes
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        port, tokens, mark, state.pid, state.parent = json.loads(said)
        state.settings = environment.parse(state.variables)
        connections = []
        for token in tokens:
            connections.append(_without_delay(socket.create_connection(("127.0.0.1", port))))
            connections[-1].sendall(token.encode())

        from goplugin.companion import process

        control, events = connections
        process.run(state, mark.encode(), control, events, 0)
    except Exception:  # noqa: BLE001 the plugin logs that the companion died; this tells why
        traceback.print_exc()
    finally:
        os._exit(0)


def _without_delay(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _in_thread(carry: Callable[[socket.socket], object]) -> socket.socket:
    """Run carry(the other end of a socket pair) in a thread, and return our end. It ends when carry() returns."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with theirs, contextlib.suppress(OSError):
            carry(theirs)

    threading.Thread(target=run, daemon=True).start()
    ours.setblocking(False)
    return ours


def reads(fd: int) -> socket.socket:
    """Return a socket from which the pipe's bytes can be read."""

    def carry(theirs: socket.socket) -> None:
        while data := os.read(fd, 65536):
            theirs.sendall(data)

    return _in_thread(carry)


def writes(fd: int) -> socket.socket:
    """Return a socket whose bytes go to the pipe. It ends when nobody reads the pipe."""
    import msvcrt

    handle = ctypes.c_void_p(msvcrt.get_osfhandle(fd))  # type: ignore[attr-defined,unused-ignore]

    def carry(theirs: socket.socket) -> None:
        theirs.settimeout(_LOOK)
        while True:
            try:
                data = theirs.recv(65536)
            except TimeoutError:
                if _nobody_reads(handle):
                    return
            else:
                if not data:
                    return
                standard_streams.write_all(fd, data)

    return _in_thread(carry)


def _nobody_reads(handle: Any) -> bool:
    """Whether the other end of a pipe is closed. An empty write would tell too, but a host may take it for the end."""
    status, local = (ctypes.c_void_p * 2)(), (ctypes.c_ulong * 10)()
    failed = _nt.NtQueryInformationFile(
        handle, ctypes.byref(status), ctypes.byref(local), ctypes.sizeof(local), _PIPE_LOCAL_INFORMATION
    )
    return not failed and local[_PIPE_STATE] == _CLOSING  # it fails if the handle is not a pipe


def flush(pipe: socket.socket, seconds: float) -> None:
    """Wait until all bytes that were sent are in the pipe, at most so many seconds."""
    with contextlib.suppress(OSError):
        pipe.shutdown(socket.SHUT_WR)
        pipe.settimeout(seconds)
        pipe.recv(1)


def descriptor_limit() -> int:
    """Return how many sockets the loop can wait for."""
    return MOST_SOCKETS


def watch_host(loop: Loop, parent: int, stderr: socket.socket, gone: Callable[[str], None]) -> None:
    """Call gone(reason) when the process that started the plugin has ended, and when nobody reads its stderr."""

    def watch(end: socket.socket, reason: str) -> None:
        def on_event(_: int) -> None:
            loop.forget(end)
            end.close()
            gone(reason)

        loop.watch(end, READ, on_event)

    watch(stderr.dup(), "the host is gone")

    def wait_for_parent(theirs: socket.socket) -> None:
        if not (parent and has_ended(parent, _INFINITE)):
            threading.Event().wait()  # the system does not tell: we do not know its pid, or it is another user's

    watch(_in_thread(wait_for_parent), "the process that started this plugin is gone")


def has_ended(pid: int, milliseconds: int = 0) -> bool:
    """Wait until the process has ended, at most so many milliseconds. Return whether it has."""
    handle = ctypes.c_void_p(_kernel.OpenProcess(_SYNCHRONIZE, False, pid))
    if not handle:
        return bool(ctypes.get_last_error() == _NO_SUCH_PROCESS)  # type: ignore[attr-defined,unused-ignore]
    try:
        return bool(_kernel.WaitForSingleObject(handle, milliseconds) == 0)
    finally:
        _kernel.CloseHandle(handle)


def is_orphan() -> bool:
    """Return False: on Windows the companion notices if the process that started us ended early."""
    return False
