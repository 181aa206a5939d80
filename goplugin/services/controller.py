"""plugin.GRPCController: the host calls Shutdown to end the plugin. Mirrors go-plugin's grpc_controller.go."""

from collections.abc import Callable

import grpc

from goplugin.services import host_pb2, host_pb2_grpc


class Controller(host_pb2_grpc.GRPCControllerServicer):
    """Calls shutdown(), which must be quick: the host waits for the answer without a deadline."""

    def __init__(self, shutdown: Callable[[], None]) -> None:
        self._shutdown = shutdown

    def Shutdown(self, request: host_pb2.Empty, context: grpc.ServicerContext) -> host_pb2.Empty:
        """Answer once the host has read what was printed, after 0.5 s at the latest. It reads no more after that."""
        self._shutdown()
        return host_pb2.Empty()
