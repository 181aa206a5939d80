"""The services that go-plugin adds to every plugin in Go, besides health; mirrors go-plugin's grpc_server.go."""

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
    server: Any, controller: Controller, stdio: Stdio, broker: BrokerBase, calls: Any, threads: Executor
) -> None:
    """Add them.

    calls: the interceptor that the server should have.
    threads: for the calls that must be heard however many calls of the plugin's own services there are.
    """
    for method in (Controller.Shutdown, Stdio.StreamStdio, BrokerBase.StartStream):
        # Without this attribute of grpcio's they would wait behind those calls.
        setattr(method, "experimental_thread_pool", threads)  # noqa: B010
    native.adapt(server, calls)
    server.add_generic_rpc_handlers([_Witness(calls)])
    host_pb2_grpc.add_GRPCControllerServicer_to_server(controller, server)
    host_pb2_grpc.add_GRPCStdioServicer_to_server(stdio, server)
    host_pb2_grpc.add_GRPCBrokerServicer_to_server(broker, server)


class _Witness(grpc.GenericRpcHandler):
    """Sees the calls of these services, as every host makes them at once, and tells if the interceptor does not."""

    def __init__(self, calls: Any) -> None:
        self._calls = calls

    def service(self, handler_call_details: Any) -> None:
        if not self._calls.consulted:
            self._calls.consulted = True
            _log.error(
                "the server lacks goplugin's interceptor, and may lack more that a host expects:"
                " pass **plugin.server_arguments to the function that makes it"
            )
