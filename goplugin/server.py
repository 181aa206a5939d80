"""The plugin as its host sees it; mirrors Serve in go-plugin's server.go and GRPCServer in its grpc_server.go."""

import atexit
import gc
import json
import logging
import os
import signal
import sys
import time
from typing import TextIO

import grpc

from goplugin import allocator, handshake, host_pb2_grpc, log, outputs, terminator
from goplugin.automtls import TLSFiles, UnverifiedTLS
from goplugin.broker import Broker
from goplugin.controller import Controller
from goplugin.environ import host_environ
from goplugin.handshake import Handshake, HandshakeConfig
from goplugin.lifetime import GRACE, LAST_RESORT, TERMINATOR_DIED, Lifetime, leave_within
from goplugin.listener import Address, Plain, Transport
from goplugin.reflection import Reflection
from goplugin.stdio import Stdio
from goplugin.terminator import Terminator
from goplugin.workers import Workers

DEBUG = "--debug"

_log = log.get_logger("goplugin")


class Plugin:
    """What go-plugin gives every Go plugin, for a grpc.server of yours. Made, and waited in, by the main thread.

    version: the app protocol version that the host shall be served.
    broker: further connections to and from the host.
    workers, options: for grpc.server().
    stdout: where the handshake line goes, and nothing else.
    """

    # Two plugins never share a port, and messages are as large as gRPC can have them (the host's limit is the same).
    options = (
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    )

    def __init__(
        self,
        config: HandshakeConfig,
        *,
        usage: str | None = None,
        leave_with_host: bool = True,
        tls: TLSFiles | None = None,
    ) -> None:
        """Exits with code 1 and a text on stderr, `usage` included, if no host started this process.

        leave_with_host: False for hosts that may end and later reattach to the plugin, which then leaves at
        Shutdown and SIGTERM only.
        tls: a certificate of the plugin's own, for hosts that know it; AutoMTLS needs none.
        """
        by_host = handshake.check_magic_cookie(config)
        if not by_host and DEBUG not in sys.argv:
            handshake.exit_with(
                "This program is a plugin: a host that uses HashiCorp's go-plugin starts it and talks to it.\n"
                f"Started by hand ({config.magic_cookie_key} is not set as that host sets it) it does nothing, but\n"
                f"with {DEBUG} it waits for a host to attach.\n"
                f"\n{(usage or '').strip()}"
            )
        self._debugged = not by_host
        self._lifetime = Lifetime()
        self._leave_with_host = leave_with_host and by_host
        self.stdout: TextIO = outputs.take_stdout() if by_host else outputs.host_stdout()
        if self._debugged:
            # A person reads what is printed and logged, and ends it by Ctrl-C.
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
            log.set_up(handler)
            signal.signal(signal.SIGINT, lambda signum, frame: self._lifetime.stop("Ctrl-C"))
        else:
            log.set_up()
        self.version = handshake.choose_protocol_version(config)
        allocator.keep_buffers()  # before gRPC's threads have heaps of their own
        self.workers = Workers()
        self._transport = _transport(tls)
        self.broker = Broker(self._transport, self.workers, self.options)
        self._stdio = Stdio()
        self._server: grpc.Server | None = None
        self._address: Address | None = None
        # Threads that no call of the plugin's service can take, so that Shutdown is heard however many there are. Three
        # from the start: a host keeps two streams open, and nothing waits for a thread to be added.
        reserved = Workers(3, 64)
        for method in (Controller.Shutdown, Stdio.StreamStdio, Broker.StartStream):
            setattr(method, "experimental_thread_pool", reserved)  # noqa: B010

    def add_to_server(self, server: grpc.Server) -> None:
        """Add the services that go-plugin adds to every plugin in Go, besides health."""
        host_pb2_grpc.add_GRPCControllerServicer_to_server(Controller(self._shutdown), server)
        host_pb2_grpc.add_GRPCStdioServicer_to_server(self._stdio, server)
        host_pb2_grpc.add_GRPCBrokerServicer_to_server(self.broker, server)
        server.add_generic_rpc_handlers([Reflection(server)])

    def listen(self, server: grpc.Server) -> str:
        """Start the server where the host can reach it, and return the line that tells the host, the handshake.

        Started by hand with --debug, the line is what a host needs to attach: as JSON, in the form that Terraform
        reads from TF_REATTACH_PROVIDERS. The name in it is what follows --debug, else the script's.

        Exits with code 1 and a text on stderr if it cannot listen there.
        """
        try:
            self._address = self._transport.listen(server)
            server_cert = self._transport.server_cert
            atexit.register(self._clean_up)
        except (OSError, ValueError) as error:
            handshake.exit_with(f"This plugin cannot listen: {error}")
        # What is imported by now stays: no collection looks through it again, the last one at our end least of all,
        # where it would take longer than all else.
        gc.freeze()
        server.start()
        self._server = server
        if self._debugged:
            return self._reattach_config(self._address)
        outputs.redirect(self._stdio.write)
        multiplex = "false" if host_environ.get("PLUGIN_MULTIPLEX_GRPC") else ""
        return str(Handshake(self.version, *self._address, server_cert, multiplex))

    def wait(self) -> None:
        """Serve until the host tells the plugin to leave, or SIGTERM, or the host is gone; then return.

        Calls in flight have 1.5 s to finish. Whatever main() does after this has 0.3 s more.
        """
        host_pipes = () if self._debugged else (self.stdout.fileno(), outputs.STDERR)
        watched = self._transport if isinstance(self._transport, Terminator) else None
        reason = self._lifetime.wait(host_pipes, self._leave_with_host, watched)
        leave_within(GRACE + LAST_RESORT)
        _log.log(logging.ERROR if reason == TERMINATOR_DIED else logging.DEBUG, "leaving: %s", reason)
        end = time.monotonic() + GRACE
        stopped = self._server.stop(GRACE) if self._server else None
        # Not only until grpc has no call any more: it forgets a call when its caller goes, as the host does after
        # Shutdown, and the handler may still be writing.
        self.workers.drain(GRACE)
        outputs.redirect(None)
        self._stdio.close()
        self.broker.end_streams()
        if stopped:
            stopped.wait(max(0.0, end - time.monotonic()))
        self._stdio.count_unread()
        self._clean_up()

    def _clean_up(self) -> None:
        """Leave no socket behind; also when main() ends without waiting."""
        self.broker.close()
        address, self._address = self._address, None
        if address:
            self._transport.close(address)
            self._transport.stop()

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
        return json.dumps(
            {after[0] if after else os.path.splitext(os.path.basename(sys.argv[0]))[0]: config}, separators=(",", ":")
        )


def _transport(tls: TLSFiles | None) -> Transport:
    if tls:
        if terminator.of_host:
            terminator.of_host.stop()  # as in Go, the plugin's own certificate goes before AutoMTLS
        if not terminator.available():
            handshake.exit_with(
                "This plugin brings its own certificate, for which there must be fork and Unix sockets."
            )
        return Terminator(files=tls)
    if terminator.of_host:
        return terminator.of_host
    return UnverifiedTLS() if host_environ.get("PLUGIN_CLIENT_CERT") else Plain()
