"""goplugin.Plugin: the order of events. The other modules do the work; lifetime.py has a table of a plugin's states.

Mirrors Serve in go-plugin's server.go and GRPCServer in its grpc_server.go.
"""

import atexit
import gc
import inspect
import logging
import os
import signal
import sys
import threading
import time
from typing import Any

import grpc

from goplugin import environment, launch, log, services, standard_streams
from goplugin.address import Address
from goplugin.allocator import Allocator
from goplugin.companion.tls import TLSFiles
from goplugin.environment import Environment
from goplugin.handshake import HandshakeConfig, handshake_line
from goplugin.interceptor import Interceptor, summary
from goplugin.lifetime import GRACE, Lifetime
from goplugin.services.broker import Broker
from goplugin.services.controller import Controller
from goplugin.services.stdio import Stdio
from goplugin.state import STATE
from goplugin.transport import OPTIONS, ByCompanion, Multiplexed, Plain, Transport
from goplugin.version import __version__
from goplugin.workers import Workers

_log = log.get_logger("goplugin")


class PluginBase:
    """What Plugin and goplugin.aio's Plugin share: everything but how to serve and how to wait."""

    _grpc = "grpc"  # the module whose server() makes the server
    _pool = "thread_pool"  # the name of server()'s argument for the pool
    _await = ""  # what an author writes before plugin.listen() and plugin.wait()
    _make_interceptor: Any = Interceptor
    _make_broker: Any = Broker

    def __init__(
        self,
        config: HandshakeConfig,
        *,
        usage: str | None = None,
        leave_with_host: bool = True,
        tls: TLSFiles | None = None,
    ) -> None:
        """Exit with code 1 and a text on stderr if no host started this process. The text ends with `usage`.

        leave_with_host: False for hosts that may end and later reattach. The plugin then leaves only at Shutdown,
        SIGTERM and SIGHUP.
        tls: the plugin's own certificate, for hosts that know it. AutoMTLS needs none.
        RuntimeError if this process has a Plugin already. ValueError if a field of config is empty.
        """
        if getattr(sys, "frozen", False):
            import multiprocessing

            # A PyInstaller executable starts itself for each worker. In a worker, this call does its work and exits.
            multiprocessing.freeze_support()
        if threading.current_thread() is not threading.main_thread():
            log.exit_with("goplugin.Plugin must be created in the main thread: only the main thread receives signals")
        if STATE.plugin:
            raise RuntimeError("this process has a goplugin.Plugin already: add all services to that one's server")
        config.check()
        self._by_host = launch.started_by_host(config, usage)
        if STATE.companion:
            launch.connect_companion()
        STATE.plugin = self
        if self._by_host:
            log.set_up()
        else:  # a person reads the log
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
            log.set_up(handler)
            STATE.settings = environment.parse(STATE.variables)
        if STATE.grpc_came_first:
            _log.error(
                "grpc was imported before goplugin: output of earlier imports may have broken the handshake;"
                " write `import goplugin` above all other imports"
            )
        for text in STATE.settings.ignored:
            _log.warning("%s", text)
        self.version = config.choose_version(STATE.settings.protocol_versions)
        allocator = Allocator()  # before threads start: each would get its own heap
        self._threads = Workers(3, 64)  # for calls that must be answered whatever the plugin's own handlers do
        self._transport = _transport(STATE.settings, tls)
        self._interceptor = self._make_interceptor(self._threads)
        self.server_arguments: dict[str, Any] = {
            self._pool: Workers(),
            "options": (("grpc.so_reuseport", 0), *OPTIONS),  # SO_REUSEPORT would let two plugins bind the same port
            "interceptors": (self._interceptor,),
        }
        self.broker = self._make_broker(self._transport, self.server_arguments)
        self._stdio = Stdio()
        self._server: Any = None
        self._address: Address | None = None
        if STATE.companion and not (leave_with_host and self._by_host):
            STATE.companion.tell("stay")
        self._lifetime = Lifetime(self._leave, STATE.companion, launch.companion_died, allocator.trim)
        if not self._by_host:
            self._lifetime.stop_at(signal.SIGINT, "Ctrl-C")
        atexit.register(self._at_exit)

    def _before_start(self, server: Any) -> Address:
        """Add the services that go-plugin adds in Go, bind the server, and return the address for the host."""
        if not callable(getattr(server, "add_generic_rpc_handlers", None)):
            what = f"a {type(server).__name__}"
        elif inspect.iscoroutinefunction(server.start) != bool(self._await):
            what = "a grpc.server" if self._await else "a grpc.aio.server, for which there is goplugin.aio.Plugin"
        else:
            what = ""
        if what:
            raise TypeError(f"plugin.listen() needs the server from {self._grpc}.server(...), but it was given {what}")
        if self._server:
            raise RuntimeError("plugin.listen() was called twice")
        pool = self.server_arguments[self._pool]
        if isinstance(pool, Workers):
            pool.when_full = self._interceptor.warn_full
        services.add_to_server(
            server, Controller(self._shutdown), self._stdio, self.broker, self._interceptor, self._threads
        )
        try:
            self._server_cert = self._transport.server_cert()  # first: the companion sends it unasked
            self._address = self._transport.listen(server)
        except (OSError, ValueError, RuntimeError) as error:
            log.exit_with(f"This plugin cannot listen: {error}")
        # Freeze what is already imported; otherwise the full collection at exit takes longer than the rest of the exit.
        gc.freeze()
        return self._address

    def _after_start(self, server: Any, address: Address) -> str:
        """Return the handshake line. server: its stop(grace) works in any thread."""
        self._server = server
        _log.debug("goplugin %s serves, with grpcio %s", __version__, grpc.__version__)
        if self._by_host:
            multiplex = bool(STATE.variables.get("PLUGIN_MULTIPLEX_GRPC"))
            line = handshake_line(self.version, *address, self._server_cert, multiplex=multiplex)
        else:
            line = launch.reattach_config(self.version, address)
        STATE.standard_streams.expect_handshake(line, then=self._stdio.write)
        return line

    def _before_wait(self) -> None:
        listen = f"{self._await}plugin.listen(server)"
        if not self._server:
            raise RuntimeError(f"plugin.wait() was called before {listen}")
        if not STATE.standard_streams.handshake_printed:
            log.exit_with(
                f"plugin.wait() was called before the handshake line was printed: write print({listen}, flush=True)."
                " Print it to the sys.stdout that `import goplugin` made: older streams, such as sys.__stdout__, and"
                " new ones, from os.fdopen(1), lead to the host's log"
            )

    def _leave(self, reason: str) -> None:
        """Stop serving. Runs in Lifetime's thread, and avoids new threads: the system may have none left."""
        _log.debug("leaving: %s", reason)
        STATE.standard_streams.close_stdout()  # otherwise a host with an old go-plugin may log that it was cut
        end = time.monotonic() + GRACE
        stopped = None
        if self._server:
            try:
                stopped = self._server.stop(GRACE)
            except RuntimeError:  # grpc needs a thread, but the system has none left
                self._drain(end)
                stopped = self._server.stop(None)
        # Do not rely on grpc's count of calls: it forgets a call when the caller leaves. The host leaves after
        # Shutdown, but the handler may still be writing.
        self._drain(end)
        if unfinished := self._interceptor.unfinished():
            _log.warning("leaving, although calls did not end within %g s: %s", GRACE, summary(unfinished))
        STATE.standard_streams.redirect(None)
        self._stdio.close()
        self.broker.end_streams()
        if stopped:
            stopped.wait(max(0.0, end - time.monotonic()))
        self._stdio.count_unread()
        self._clean_up()

    def _drain(self, end: float) -> None:
        """Wait for running handlers, unless the plugin's code has replaced the pool with another kind."""
        pool = self.server_arguments[self._pool]
        if isinstance(pool, Workers):
            pool.drain(end - time.monotonic())

    def _clean_up(self) -> None:
        """Close the connections, and remove the files of sockets."""
        self.broker.close()
        address, self._address = self._address, None
        if address:
            self._transport.close(address)

    def _at_exit(self) -> None:
        """At exit: if nothing told the plugin to leave, main() lacks wait(). Tell the host, and exit with code 1."""
        if STATE.is_child():
            return
        if self._lifetime.is_over():
            self._lifetime.wait(GRACE)  # main() may use wait_for_termination() instead of wait()
            return
        self._clean_up()
        if STATE.failed or STATE.standard_streams.exit_text:
            return
        missing = "plugin.wait(), so the plugin ends at once" if self._server else "plugin.listen(server)"
        message = f"main() ended without {self._await}{missing}: call it as the last step"
        _log.error("%s", message)
        STATE.standard_streams.tell_host(message)
        if STATE.companion:
            STATE.companion.end()
        os._exit(1)

    def leave_to_parent(self) -> None:
        """In a child by fork: close the host's connections. In the child they would outlive a plugin that is killed."""
        standard_streams.close_sockets(self._transport.addresses)

    def _shutdown(self) -> None:
        try:
            self._stdio.drain(GRACE / 3)  # the host reads no more after the answer
        finally:
            self._lifetime.stop("Shutdown")


class Plugin(PluginBase):
    """Everything that go-plugin gives a Go plugin, for your grpc.server. Create one per process, in the main thread.

    version: the app protocol version that host and plugin agreed on.
    broker: for further connections to and from the host.
    server_arguments: for grpc.server(): a thread pool, options and interceptors.
    """

    broker: Broker

    def listen(self, server: Any) -> str:
        """Add the services that go-plugin adds in Go, start the server, and return the handshake line to print.

        Print it with print(), sys.stdout.write() or sys.stdout.buffer.write(). Then this line, and nothing else,
        reaches the stdout that the host reads. Other writes to file descriptor 1 go to the host's log.

        If a person started the plugin with --debug, the line is JSON with which a host attaches, in the form that
        Terraform reads from TF_REATTACH_PROVIDERS. The name in it is the argument after --debug, or the script's name.

        TypeError if server is not a grpc.server. Exits with code 1 if the plugin cannot listen.
        """
        address = self._before_start(server)
        before = threading.enumerate()
        try:
            server.start()
        except ValueError as error:
            raise RuntimeError("call plugin.listen(server) instead of server.start(), which it does itself") from error
        except OSError as error:
            log.exit_with(f"This plugin cannot listen: {error}")
        for thread in set(threading.enumerate()) - set(before):  # in grpc's own threads, a __del__ may print
            self._stdio.never_wait_in(thread.ident or 0)
        return self._after_start(server, address)

    def wait(self) -> None:
        """Serve until the host calls Shutdown, SIGTERM or SIGHUP arrives, or the host is gone. Then return.

        Calls in flight have 1.5 s to finish. After that, the rest of main() has 0.3 s.
        """
        self._before_wait()
        self._lifetime.wait()


def _transport(settings: Environment, tls: TLSFiles | None) -> Transport:
    if tls and not STATE.companion:  # --debug
        launch.start_companion()
        launch.connect_companion()
    companion = STATE.companion
    if tls:
        try:
            companion.use_files(*tls)  # as in Go, the plugin's own certificate takes precedence over AutoMTLS
        except ValueError as error:
            log.exit_with(f"This plugin cannot use its own certificate: {error}")
    if settings.multiplex and companion:
        return Multiplexed(companion)
    if tls or (settings.client_cert and companion):
        return ByCompanion(companion)
    return Plain(settings, companion.path if companion else _no_path)


def _no_path() -> str:
    raise OSError("TCP does not work here, and a Unix socket needs the companion process, which --debug does not start")
