"""The plugin as its host sees it; mirrors Serve in go-plugin's server.go and GRPCServer in its grpc_server.go.

Plugin tells the order of events; the modules that it calls know the rest.
"""

import atexit
import contextlib
import gc
import inspect
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import grpc

from goplugin import allocator, environment, log, outputs, services, start
from goplugin.address import Address
from goplugin.calls import Calls
from goplugin.companion.tls import TLSFiles
from goplugin.handshake import HandshakeConfig, handshake_line
from goplugin.hostwatch import HostWatch
from goplugin.lifetime import GRACE, Lifetime
from goplugin.services.broker import Broker
from goplugin.services.controller import Controller
from goplugin.services.stdio import Stdio
from goplugin.start import DEBUG
from goplugin.transport import ByCompanion, Multiplexed, Plain, Transport, UnverifiedTLS
from goplugin.version import __version__
from goplugin.workers import Workers

_log = log.get_logger("goplugin")
_plugin: "PluginBase | None" = None  # the one of this process


def _at_exit_without_plugin() -> None:
    if not (_plugin or log.main_failed or outputs.exit_text) and os.getpid() == start.pid:
        message = "the script has ended without goplugin.Plugin(HANDSHAKE): does it run main()?"
        _log.error("%s", message)
        outputs.tell_host(message)


if outputs.host_stdout >= 0:
    atexit.register(_at_exit_without_plugin)

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two plugins must never share a port
    # No limits but those of gRPC itself, as in Go.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 16 << 20),
    ("grpc.absolute_max_metadata_size", 16 << 20),
)


class PluginBase:
    """What Plugin and goplugin.aio's Plugin share: all but how to serve and how to wait."""

    _grpc = "grpc"  # the module whose server() makes what `listen` takes
    _pool = "thread_pool"  # its argument for the pool
    _await = ""  # what an author writes before plugin.listen() and plugin.wait()
    _make_calls: Any = Calls
    _make_broker: Any = Broker

    def __init__(
        self,
        config: HandshakeConfig,
        *,
        usage: str | None = None,
        leave_with_host: bool = True,
        tls: TLSFiles | None = None,
        allow_unverified_callers: bool = False,
    ) -> None:
        """Exit with code 1 and a text on stderr, which ends with `usage`, if no host started this process.

        leave_with_host: False for hosts that may end and later reattach to the plugin, which then leaves at
        Shutdown and SIGTERM only.
        tls: a certificate of the plugin's own, for hosts that know it; AutoMTLS needs none.
        allow_unverified_callers: serve under AutoMTLS also where the host cannot be told from other callers, because
        the system has no fork (Windows). Otherwise the plugin exits there.
        """
        global _plugin
        if getattr(sys, "frozen", False):
            import multiprocessing

            # A PyInstaller executable starts itself for each worker: there this does the work and does not return.
            multiprocessing.freeze_support()
        if threading.current_thread() is not threading.main_thread():
            log.exit_with("goplugin.Plugin must be created in the main thread: only that one receives signals")
        if _plugin:
            raise RuntimeError("there is a goplugin.Plugin already: a process is one plugin; add all services to it")
        config.check()
        self._pid = os.getpid()
        self._by_host = _started_by_host(config, usage)
        _plugin = self
        if self._by_host:
            log.set_up()
            settings = start.settings
        else:  # a person reads what is printed and logged
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
            log.set_up(handler)
            settings = environment.parse(start.variables)
        if start.companion:
            start.companion.reap()
        if start.grpc_came_first:
            _log.error(
                "grpc was imported before goplugin: what was printed until then may have broken the handshake;"
                " write `import goplugin` above all other imports"
            )
        if start.refused:
            _log.warning("no companion process (%s): child processes may keep the host waiting", start.refused)
        for text in settings.ignored:
            _log.warning("%s", text)
        self.version = config.choose_version(settings.protocol_versions)
        allocator.keep_buffers()  # before there are threads, which would have heaps of their own
        self._threads = Workers(3, 64)  # for what must be heard whatever the plugin's own handlers do
        self._transport = _transport(settings, tls, allow_unverified_callers)
        self._calls = self._make_calls(self._threads)
        self.server_arguments: dict[str, Any] = {
            self._pool: Workers(),
            "options": _OPTIONS,
            "interceptors": (self._calls,),
        }
        self.broker = self._make_broker(self._transport, self.server_arguments)
        self._stdio = Stdio()
        self._server: Any = None
        self._address: Address | None = None
        if not leave_with_host and start.companion:
            with contextlib.suppress(OSError):  # it has died, and leaves the plugin alone
                start.companion.tell("stay")
        watch = HostWatch(start.parent, (outputs.host_stdout, outputs.host_stderr)) if self._by_host else None
        self._lifetime = Lifetime(self._leave, watch if leave_with_host else None, start.companion, self._alone)
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
        library = type(server).__module__.split(".")[0]
        self._calls.instead = "" if library == "grpc" else library
        services.add_to_server(server, Controller(self._shutdown), self._stdio, self.broker, self._calls, self._threads)
        try:
            self._server_cert = self._transport.server_cert()  # first: the companion sends it without being asked
            self._address = self._transport.listen(server)
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, OSError):
                self._transport.companion_died()  # if that is the reason, nobody else cleans up
            log.exit_with(f"This plugin cannot listen: {error}")
        # Freeze what is already imported; otherwise the full collection at exit would take longer than the rest of it.
        gc.freeze()
        return self._address

    def _after_start(self, server: Any, address: Address) -> str:
        """Return the handshake line. server: whose stop(grace) can be called in any thread."""
        self._server = server
        instead = f" and {self._calls.instead}" if self._calls.instead else ""
        _log.debug("goplugin %s serves, with grpcio %s%s", __version__, grpc.__version__, instead)
        if self._by_host:
            multiplex = str(isinstance(self._transport, Multiplexed)).lower() if start.settings.multiplex else ""
            line = handshake_line(self.version, *address, self._server_cert, multiplex)
        else:
            line = self._reattach_config(address)
        outputs.expect_handshake(line, then=self._stdio.write)
        return line

    def _before_wait(self) -> None:
        listen = f"{self._await}plugin.listen(server)"
        if not self._server:
            raise RuntimeError(f"plugin.wait() was called before {listen}")
        if outputs.handshake_is_missing():
            log.exit_with(
                f"plugin.wait() was called, and the handshake line was not printed: write print({listen}, flush=True)"
            )

    def _leave(self, reason: str) -> None:
        """Stop serving. Runs in the thread of Lifetime, and starts none if it can be helped."""
        _log.debug("leaving: %s", reason)
        end = time.monotonic() + GRACE
        stopped = None
        if self._server:
            try:
                stopped = self._server.stop(GRACE)
            except RuntimeError:  # grpc wanted a thread, and the system has none left
                self._drain(end)
                stopped = self._server.stop(None)
        # Not only until grpc has no call any more: it forgets a call when its caller goes, as the host does after
        # Shutdown, and the handler may still be writing.
        self._drain(end)
        outputs.redirect(None)
        self._stdio.close()
        self.broker.end_streams()
        if stopped:
            stopped.wait(max(0.0, end - time.monotonic()))
        self._stdio.count_unread()
        self._clean_up()

    def _drain(self, end: float) -> None:
        """Wait for the handlers that run, where the plugin's code has not put another kind of pool there."""
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
        if os.getpid() != self._pid:
            return  # it was a child, made by fork
        if self._lifetime.is_over():
            self._lifetime.wait(GRACE)  # main() waited by other means than wait(), such as wait_for_termination()
            return
        self._clean_up()
        if log.main_failed or outputs.exit_text:
            return
        missing = "plugin.wait(), so the plugin ends at once" if self._server else "plugin.listen(server)"
        message = f"main() ended without {self._await}{missing}: call it as the last step"
        _log.error("%s", message)
        outputs.tell_host(message)
        os._exit(1)

    def _alone(self) -> str:
        """Go on without the companion, which has died, unless nobody can call us without it."""
        if self._by_host:
            outputs.send_stderr_to(outputs.host_stderr, framed=False)
        if self._transport.companion_died():
            _log.error("the companion process has died, and with it the connection to the host: the plugin leaves")
            return "the companion process has died"
        _log.error("the companion process has died: from now on child processes may keep the host waiting")
        return ""

    def _shutdown(self) -> None:
        try:
            self._stdio.drain(GRACE / 3)  # the host stops reading once this call is answered
        finally:
            self._lifetime.stop("Shutdown")

    def _reattach_config(self, address: Address) -> str:
        after = sys.argv[sys.argv.index(DEBUG) + 1 :]
        config = {
            "Protocol": "grpc",
            "ProtocolVersion": self.version,
            "Pid": os.getpid(),
            # The host must not end the plugin, and Terraform must take ProtocolVersion for what it is.
            "Test": True,
            "Addr": {"Network": address.network, "String": address.address},
        }
        name = after[0] if after else os.path.splitext(os.path.basename(sys.argv[0]))[0]
        return json.dumps({name: config}, separators=(",", ":"))


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
        try:
            with _folder_for(self._calls.instead):
                server.start()
        except ValueError as error:
            raise RuntimeError("call plugin.listen(server) instead of server.start(), which it does itself") from error
        except OSError as error:
            log.exit_with(f"This plugin cannot listen: {error}")
        return self._after_start(server, address)

    def wait(self) -> None:
        """Serve until the host tells the plugin to leave, or SIGTERM, or the host is gone; then return.

        Calls in flight have 1.5 s to finish. The rest of main() has 0.3 s after that.
        """
        self._before_wait()
        self._lifetime.wait()


@contextlib.contextmanager
def _folder_for(library: str) -> Iterator[None]:
    """Have the temporary files of a library that is not grpcio go with the companion's, however the plugin ends."""
    folder = ""
    with contextlib.suppress(OSError, ValueError):  # there is no companion, or it has no folder
        folder = os.path.dirname(start.socket_path()) if library else ""
    if not folder or len(folder) > 60:  # pygrpc-native's socket must fit behind it
        yield
        return
    import tempfile

    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before


def _started_by_host(config: HandshakeConfig, usage: str | None) -> bool:
    """Whether a host started this process; False if a person did, with --debug. Exits if neither is so."""
    key, value = config.magic_cookie_key, config.magic_cookie_value
    found = os.environ.get(key)
    if found == value and (start.variables or DEBUG not in sys.argv):
        del os.environ[key]  # a child must not take itself for the plugin
        if outputs.host_stdout < 0:  # a host that sets the cookie alone, or passes --debug
            start.take_over()
        return True
    if DEBUG in sys.argv:
        return False
    if start.variables:
        log.exit_with(
            f"This plugin and its host do not fit: HANDSHAKE expects {key}={value} in the environment, and"
            f" {key} is {'not set' if found is None else repr(found)}."
            " Copy magic_cookie_key and magic_cookie_value from the host's source or documentation."
        )
    return _exit_by_hand(key, usage)


def _exit_by_hand(key: str, usage: str | None) -> NoReturn:
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    unknown = next((option for option in options if option not in ("-h", "--help")), "")
    if unknown:
        import difflib

        guess = f" Did you mean {DEBUG}?" if difflib.get_close_matches(unknown, [DEBUG]) else ""
        log.exit_with(f"Unknown option {unknown}.{guess} Started by hand, this plugin knows {DEBUG} [NAME].")
    log.exit_with(
        "This program is a plugin: a host that uses HashiCorp's go-plugin starts it and talks to it.\n"
        f"Started by hand ({key} is not set as that host sets it) it does nothing, but\n"
        f"with {DEBUG} it waits for a host to attach.\n"
        f"\n{(usage or '').strip()}"
    )


def _transport(settings: environment.Environment, tls: TLSFiles | None, allow_unverified_callers: bool) -> Transport:
    by_companion = Multiplexed if settings.multiplex else ByCompanion
    if tls:
        start.start_companion()  # --debug has none yet
        if not start.companion:
            log.exit_with(
                f"This plugin brings its own certificate, which needs a process beside this one: {start.refused}"
            )
        try:
            start.companion.use_files(*tls)  # as in Go, the plugin's own certificate goes before AutoMTLS
        except ValueError as error:
            log.exit_with(f"This plugin cannot use its own certificate: {error}")
        return by_companion(start.companion)
    if start.companion and (settings.client_cert or settings.multiplex):
        return by_companion(start.companion)
    if settings.multiplex:
        _log.error("the host's multiplexing needs a process beside this one, and there is none (%s)", start.refused)
    if not settings.client_cert:
        return Plain(settings, start.socket_path)
    if not allow_unverified_callers:
        log.exit_with(
            "The host asks for AutoMTLS, which needs a process beside this one, and there is none"
            f" ({start.refused}). Turn AutoMTLS off in the host, or, if every"
            " user of this machine may call the plugin, pass allow_unverified_callers=True to goplugin.Plugin."
        )
    _log.warning("TLS by grpcio alone: the traffic is encrypted, and whoever can connect is served")
    return UnverifiedTLS(settings, start.socket_path)
