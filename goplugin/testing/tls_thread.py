"""The host's side of AutoMTLS, for goplugin.testing: the companion's code, in a thread."""

import contextlib
import itertools
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from goplugin.companion.connections import Connections
from goplugin.companion.hop import make_hop
from goplugin.companion.loop import READ, Loop
from goplugin.companion.tls import Contexts
from goplugin.environment import Environment


class TLSThread:
    """Runs Connections, as the companion does, but in a thread: a test has threads already, and must not fork.

    It has those methods of Companion that ByCompanion uses.
    """

    def __init__(self, contexts: Contexts, environment: Environment, folder: str) -> None:
        """contexts: the host's. folder: for sockets; the caller removes it."""
        self._loop, self._folder, self._paths = Loop(), folder, itertools.count()
        connections = Connections(self._loop, contexts, environment, make_hop(self.path, lambda: folder), None)
        self._commands: dict[str, Callable[..., Any]] = {
            name: getattr(connections, name) for name in ("hop", "listen", "dial", "close")
        }
        self._connections = connections
        self._asked = queue.SimpleQueue[tuple[Future[Any], str, tuple[str, ...]]]()
        self._wake, self._woken = socket.socketpair()
        self._loop.watch(self._woken, READ, self._run_command)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="goplugin-tls", daemon=True)
        self._thread.start()

    def server_cert(self) -> str:
        """Return "": a host prints no handshake line."""
        return ""

    def ask(self, command: str, *arguments: str) -> Any:
        """Run a command in the thread. Return its result, or raise its error."""
        return self._give(command, *arguments).result()

    def tell(self, command: str, *arguments: str) -> None:
        """Run a command in the thread, without waiting for it."""
        with contextlib.suppress(OSError):  # the thread is closed
            self._give(command, *arguments)

    def close(self) -> None:
        """End the thread. Call this after both ends have closed their connections."""
        if not self._closed:
            self._closed = True
            self._wake.close()
            self._thread.join()

    def _give(self, command: str, *arguments: str) -> "Future[Any]":
        future: Future[Any] = Future()
        self._asked.put((future, command, arguments))
        self._wake.sendall(b".")
        return future

    def _run(self) -> None:
        while not self._closed:
            self._loop.run_once()
        self._loop.forget(self._woken)
        self._woken.close()
        self._connections.close_all()
        end = time.monotonic() + 1
        while self._loop.is_watching() and time.monotonic() < end:  # let relays notice that both ends have closed
            self._loop.run_once(0.1)

    def _run_command(self, events: int) -> None:
        if not self._woken.recv(1):
            return  # close() was called
        future, command, arguments = self._asked.get()
        try:
            future.set_result(self._commands[command](*arguments))
        except (OSError, ValueError) as error:
            future.set_exception(error)

    def path(self) -> str:
        """Return a path for a Unix socket."""
        return os.path.join(self._folder, str(next(self._paths)))
