"""plugin.GRPCController: the host calls Shutdown to end the plugin; mirrors go-plugin's grpc_controller.go."""

from collections.abc import Callable

import grpc

from goplugin.services import host_pb2, host_pb2_grpc


class Controller(host_pb2_grpc.GRPCControllerServicer):
    """Calls `shutdown`, which must not take long: the host waits for the answer without a deadline."""

    def __init__(self, shutdown: Callable[[], None]) -> None:
        self._shutdown = shutdown

    def Shutdown(self, request: host_pb2.Empty, context: grpc.ServicerContext) -> host_pb2.Empty:
        """Answer when the host has what was printed, which it reads no more after that; after 0.5 s in any case."""
        self._shutdown()
        return host_pb2.Empty()
