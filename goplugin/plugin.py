"""The plugin as its host sees it; mirrors Serve in go-plugin's server.go and GRPCServer in its grpc_server.go.

Plugin tells the order of events; the modules that it calls know the rest.
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

from goplugin import environment, launch, log, standard_streams, services
from goplugin.address import Address
from goplugin.allocator import Allocator
from goplugin.interceptor import Interceptor, summary
from goplugin.companion.tls import TLSFiles
from goplugin.environment import Environment
from goplugin.handshake import HandshakeConfig, handshake_line
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
    """What Plugin and goplugin.aio's Plugin share: all but how to serve and how to wait."""

    _grpc = "grpc"  # the module whose server() makes what `listen` takes
    _pool = "thread_pool"  # its argument for the pool
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
        """Exit with code 1 and a text on stderr, which ends with `usage`, if no host started this process.

        leave_with_host: False for hosts that may end and later reattach to the plugin, which then leaves at
        Shutdown and SIGTERM only.
        tls: a certificate of the plugin's own, for hosts that know it; AutoMTLS needs none.
        """
        if getattr(sys, "frozen", False):
            import multiprocessing

            # A PyInstaller executable starts itself for each worker: there this does the work and does not return.
            multiprocessing.freeze_support()
        if threading.current_thread() is not threading.main_thread():
            log.exit_with("goplugin.Plugin must be created in the main thread: only that one receives signals")
        if STATE.plugin:
            raise RuntimeError("there is a goplugin.Plugin already: a process is one plugin; add all services to it")
        config.check()
        self._by_host = launch.started_by_host(config, usage)
        if STATE.companion:
            launch.connect_companion()
        STATE.plugin = self
        if self._by_host:
            log.set_up()
        else:  # a person reads what is printed and logged
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
            log.set_up(handler)
            STATE.settings = environment.parse(STATE.variables)
        if STATE.grpc_came_first:
            _log.error(
                "grpc was imported before goplugin: what was printed until then may have broken the handshake;"
                " write `import goplugin` above all other imports"
            )
        for text in STATE.settings.ignored:
            _log.warning("%s", text)
        self.version = config.choose_version(STATE.settings.protocol_versions)
        allocator = Allocator()  # before there are threads, which would have heaps of their own
        self._threads = Workers(3, 64)  # for what must be heard whatever the plugin's own handlers do
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
        """Add the services that go-plugin adds in Go, bind the server, and return where the host finds it."""
        if not callable(getattr(server, "add_generic_rpc_handlers", None)):
            what = f"a {type(server).__name__}"
        elif inspect.iscoroutinefunction(server.start) != bool(self._await):
            what = "a grpc.server" if self._await else "a grpc.aio.server, for which there is goplugin.aio.Plugin"
        else:
            what = ""
        if what:
            raise TypeError(f"plugin.listen() needs what {self._grpc}.server(...) returned, and was given {what}")
        if self._server:
            raise RuntimeError("plugin.listen() was called twice")
        pool = self.server_arguments[self._pool]
        if isinstance(pool, Workers):
            pool.when_full = self._interceptor.warn_full
        services.add_to_server(
            server, Controller(self._shutdown), self._stdio, self.broker, self._interceptor, self._threads
        )
        try:
            self._server_cert = self._transport.server_cert()  # first: the companion sends it without being asked
            self._address = self._transport.listen(server)
        except (OSError, ValueError, RuntimeError) as error:
            log.exit_with(f"This plugin cannot listen: {error}")
        # Freeze what is already imported; otherwise the full collection at exit takes longer than the rest of exit.
        gc.freeze()
        return self._address

    def _after_start(self, server: Any, address: Address) -> str:
        """Return the handshake line. server: whose stop(grace) can be called in any thread."""
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
                f"plugin.wait() was called, and the handshake line was not printed: write print({listen}, flush=True)."
                " It must be the sys.stdout that `import goplugin` has made: an older stream, such as sys.__stdout__,"
                " and a new one, by os.fdopen(1), lead to the host's log"
            )

    def _leave(self, reason: str) -> None:
        """Stop serving. Runs in the thread of Lifetime, and starts none if it can be helped."""
        _log.debug("leaving: %s", reason)
        STATE.standard_streams.close_stdout()  # else the host of an old go-plugin may complain that it was cut
        end = time.monotonic() + GRACE
        stopped = None
        if self._server:
            try:
                stopped = self._server.stop(GRACE)
            except RuntimeError:  # grpc wanted a thread, and the system has none left
                self._drain(end)
                stopped = self._server.stop(None)
        # Do not rely on grpc's count of calls: it forgets a call when the caller leaves, as the host does after
        # Shutdown, and the handler may still be writing.
        self._drain(end)
        if unfinished := self._interceptor.unfinished():
            _log.warning("leaving, though calls did not end within %g s: %s", GRACE, summary(unfinished))
        STATE.standard_streams.redirect(None)
        self._stdio.close()
        self.broker.end_streams()
        if stopped:
            stopped.wait(max(0.0, end - time.monotonic()))
        self._stdio.count_unread()
        self._clean_up()

    def _drain(self, end: float) -> None:
        """Wait for running handlers, unless the plugin's code has replaced the pool by another kind."""
        pool = self.server_arguments[self._pool]
        if isinstance(pool, Workers):
            pool.drain(end - time.monotonic())

    def _clean_up(self) -> None:
        """Leave no socket behind."""
        self.broker.close()
        address, self._address = self._address, None
        if address:
            self._transport.close(address)

    def _at_exit(self) -> None:
        """main() has ended."""
        if STATE.is_child():
            return
        if self._lifetime.is_over():
            self._lifetime.wait(GRACE)  # main() waited by other means than wait(), such as wait_for_termination()
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
        """In a child by fork: let go of the host's connections. They would outlive this plugin if it were killed."""
        standard_streams.close_sockets(self._transport.addresses)

    def _shutdown(self) -> None:
        try:
            self._stdio.drain(GRACE / 3)  # the host stops reading once this call is answered
        finally:
            self._lifetime.stop("Shutdown")


class Plugin(PluginBase):
    """Everything that go-plugin gives a Go plugin, for your grpc.server. A process has one, made in its main thread.

    version: the app protocol version that host and plugin have in common.
    broker: further connections to and from the host.
    server_arguments: what grpc.server() needs: its thread pool, options and interceptors.
    """

    broker: Broker

    def listen(self, server: Any) -> str:
        """Add the services that go-plugin adds in Go, start the server, and return the handshake line to print.

        Print it by print(), sys.stdout.write() or sys.stdout.buffer.write(): then this line, and nothing else, reaches
        the stdout that the host reads. Whatever is written to file descriptor 1 in another way goes to the host's log.

        Started by hand with --debug, the line is what a host needs to attach: as JSON, in the form that Terraform
        reads from TF_REATTACH_PROVIDERS. The name in it is what follows --debug, else the script's.

        TypeError if it is given something else than a grpc.server. Exits with code 1 if it cannot listen.
        """
        address = self._before_start(server)
        before = threading.enumerate()
        try:
            server.start()
        except ValueError as error:
            raise RuntimeError("call plugin.listen(server) instead of server.start(), which it does itself") from error
        except OSError as error:
            log.exit_with(f"This plugin cannot listen: {error}")
        for thread in set(threading.enumerate()) - set(before):  # grpc's, in which a __del__ may print
            self._stdio.never_wait_in(thread.ident or 0)
        return self._after_start(server, address)

    def wait(self) -> None:
        """Serve until the host tells the plugin to leave, or SIGTERM, or the host is gone; then return.

        Calls in flight have 1.5 s to finish. The rest of main() has 0.3 s after that.
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
            companion.use_files(*tls)  # as in Go, the plugin's own certificate goes before AutoMTLS
        except ValueError as error:
            log.exit_with(f"This plugin cannot use its own certificate: {error}")
    if settings.multiplex and companion:
        return Multiplexed(companion)
    if tls or (settings.client_cert and companion):
        return ByCompanion(companion)
    return Plain(settings, companion.path if companion else _no_path)


def _no_path() -> str:
    raise OSError("TCP does not work here, and a Unix socket needs the companion process, which --debug does without")
