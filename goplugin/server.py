"""The plugin as its host sees it; mirrors Serve in go-plugin's server.go and GRPCServer in its grpc_server.go."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TextIO, cast

import grpc

from goplugin import handshake, host_pb2_grpc, log
from goplugin.controller import Controller
from goplugin.handshake import Handshake, HandshakeConfig
from goplugin.lifetime import GRACE, LAST_RESORT, Lifetime, leave_within
from goplugin.listener import listen_tcp
from goplugin.workers import Workers

_log = logging.getLogger("goplugin")


class Plugin:
    """What go-plugin gives every Go plugin, for a grpc.server of yours.

    version: the app protocol version that the host shall be served.
    workers, options: for grpc.server().
    stdout: where the handshake line goes, and nothing else.
    """

    # Two plugins never share a port, and messages are as large as gRPC can have them (the host's limit is the same).
    options = (
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    )

    def __init__(self, config: HandshakeConfig, *, usage: str | None = None, leave_with_host: bool = True) -> None:
        """Exits with code 1 and a text on stderr, `usage` included, if no host started this process.

        leave_with_host: False for hosts that may end and later reattach to the plugin, which then leaves at
        Shutdown and SIGTERM only.
        """
        if not handshake.check_magic_cookie(config):
            handshake.exit_with(
                "This program is a plugin: a host that uses HashiCorp's go-plugin starts it and talks to it.\n"
                f"Started by hand ({config.magic_cookie_key} is not set as that host sets it) it does nothing.\n"
                f"\n{(usage or '').strip()}"
            )
        log.set_up()
        self.version = handshake.choose_protocol_version(config)
        # grpc.server() takes any Executor; only its type stubs name this one.
        self.workers = cast("ThreadPoolExecutor", Workers())
        self.stdout: TextIO = handshake.host_stdout()
        self._lifetime = Lifetime()
        self._host_pipes = (self.stdout.fileno(), log.STDERR) if leave_with_host else ()
        self._server: grpc.Server | None = None

    def add_to_server(self, server: grpc.Server) -> None:
        """Add the services that every host of go-plugin calls, besides health."""
        host_pb2_grpc.add_GRPCControllerServicer_to_server(Controller(self._lifetime.stop), server)

    def listen(self, server: grpc.Server) -> Handshake:
        """Start the server where the host can reach it, and return what to tell the host.

        Exits with code 1 and a text on stderr if it cannot listen there.
        """
        try:
            address = listen_tcp(server)
        except (OSError, ValueError) as error:
            handshake.exit_with(f"This plugin cannot listen: {error}")
        server.start()
        self._server = server
        return Handshake(self.version, "tcp", address)

    def wait(self) -> None:
        """Serve until the host tells the plugin to leave, or SIGTERM, or the host is gone; then return.

        Calls in flight have 1.5 s to finish. Whatever main() does after this has 0.3 s more.
        """
        reason = self._lifetime.wait(self._host_pipes)
        leave_within(GRACE + LAST_RESORT)
        _log.debug("leaving: %s", reason)
        end = time.monotonic() + GRACE
        if self._server:
            self._server.stop(GRACE).wait(GRACE)
        # grpc forgets a call when its caller goes, as the host does after Shutdown; its handler may still be writing.
        workers = threading.Thread(target=self.workers.shutdown, daemon=True)
        workers.start()
        workers.join(max(0.0, end - time.monotonic()))
