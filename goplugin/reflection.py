"""gRPC reflection, as go-plugin's grpc_server.go registers it: a tool such as grpcurl lists and calls the services.

Who never asks does not wait for its import.
"""

from typing import Any

import grpc

# The second is the first under its later name, with the same messages.
_METHODS = {f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1alpha", "v1")}


class Reflection(grpc.GenericRpcHandler):
    """Answers for all services of the server, whenever they were added."""

    def __init__(self, server: grpc.Server) -> None:
        self._server = server

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method not in _METHODS:
            return None
        from grpc_reflection.v1alpha import reflection, reflection_pb2

        # grpc.Server has no public list of what was added to it.
        handlers = self._server._state.generic_handlers  # type: ignore[attr-defined]
        names = {handler.service_name() for handler in handlers if isinstance(handler, grpc.ServiceRpcHandler)}
        return grpc.stream_stream_rpc_method_handler(
            reflection.ReflectionServicer([*names, reflection.SERVICE_NAME]).ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
