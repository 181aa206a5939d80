"""Adds the services that go-plugin adds to every plugin in Go, except health. Mirrors go-plugin's grpc_server.go."""

from concurrent.futures import Executor
from typing import Any

import grpc

from goplugin import log, native
from goplugin.services import host_pb2_grpc
from goplugin.services.broker import BrokerBase
from goplugin.services.controller import Controller
from goplugin.services.stdio import Stdio

_log = log.get_logger("goplugin")


def add_to_server(
    server: Any, controller: Controller, stdio: Stdio, broker: BrokerBase, interceptor: Any, threads: Executor
) -> None:
    """Add the services to the server.

    interceptor: the one from plugin.server_arguments, which the server should have.
    threads: for the calls that must be answered however many calls of the plugin's own services run.
    """
    for method in (Controller.Shutdown, Stdio.StreamStdio, BrokerBase.StartStream):
        # Without this attribute of grpcio's, these calls would wait behind those.
        setattr(method, "experimental_thread_pool", threads)  # noqa: B010
    native.adapt(server, interceptor)
    server.add_generic_rpc_handlers([_Witness(interceptor)])
    host_pb2_grpc.add_GRPCControllerServicer_to_server(controller, server)
    host_pb2_grpc.add_GRPCStdioServicer_to_server(stdio, server)
    host_pb2_grpc.add_GRPCBrokerServicer_to_server(broker, server)


class _Witness(grpc.GenericRpcHandler):
    """Logs an error if the interceptor does not see the calls of these services, which every host makes at once."""

    def __init__(self, interceptor: Any) -> None:
        self._interceptor = interceptor

    def service(self, handler_call_details: Any) -> None:
        if not self._interceptor.consulted:
            self._interceptor.consulted = True
            _log.error(
                "the server lacks goplugin's interceptor, and perhaps other things that a host expects:"
                " pass **plugin.server_arguments to the function that makes it"
            )
