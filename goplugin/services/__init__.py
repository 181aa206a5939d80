"""The services that go-plugin adds to every plugin in Go, besides health; mirrors go-plugin's grpc_server.go."""

from concurrent.futures import Executor
from typing import Any

from goplugin.services import host_pb2_grpc
from goplugin.services.broker import Broker
from goplugin.services.controller import Controller
from goplugin.services.reflection import Reflection
from goplugin.services.stdio import Stdio


def add_to_server(server: Any, controller: Controller, stdio: Stdio, broker: Broker, threads: Executor) -> None:
    """Add them. threads: for the calls that must be heard however many calls of the plugin's own services there are."""
    for method in (Controller.Shutdown, Stdio.StreamStdio, Broker.StartStream):
        # Without this attribute of grpcio's they would wait behind those calls.
        setattr(method, "experimental_thread_pool", threads)  # noqa: B010
    host_pb2_grpc.add_GRPCControllerServicer_to_server(controller, server)
    host_pb2_grpc.add_GRPCStdioServicer_to_server(stdio, server)
    host_pb2_grpc.add_GRPCBrokerServicer_to_server(broker, server)
    server.add_generic_rpc_handlers([Reflection(server)])
