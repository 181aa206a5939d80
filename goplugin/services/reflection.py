"""gRPC reflection, as go-plugin's grpc_server.go registers it: a tool such as grpcurl lists and calls the services.

It is imported on first use, so it costs nothing at start-up.
"""

from typing import Any

import grpc

from goplugin import log

_log = log.get_logger("goplugin.reflection")

_V1ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"  # the same, before and after it was declared stable


class Reflection(grpc.GenericRpcHandler):
    """Answers for all services of the server, also for those added later."""

    def __init__(self, server: grpc.Server) -> None:
        self._server = server

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a reflection call, and None for other calls. The first one imports what is needed."""
        _, service, _ = handler_call_details.method.split("/")
        if service not in (f"{_V1ALPHA}.ServerReflection", f"{_V1}.ServerReflection"):
            return None
        try:
            from grpc_reflection.v1alpha import reflection, reflection_pb2
        except ImportError as error:
            _log.debug("no reflection: pip install grpcio-reflection (%s)", error)
            return None
        _describe_v1(reflection_pb2.DESCRIPTOR)

        try:
            handlers = _handlers_of(self._server)
        except AttributeError:
            _log.debug("reflection lists no services: this grpc does not tell which were added")
            handlers = []
        names = {handler.service_name() for handler in handlers if isinstance(handler, grpc.ServiceRpcHandler)}
        names |= {f"{_V1ALPHA}.ServerReflection", f"{_V1}.ServerReflection"}
        return grpc.stream_stream_rpc_method_handler(
            reflection.ReflectionServicer(names).ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )


def _handlers_of(server: Any) -> Any:
    return server._state.generic_handlers  # private: grpc.Server has no public list of what was added to it


def _describe_v1(v1alpha: Any) -> None:
    """Add the description of grpc.reflection.v1, which grpcio-reflection lacks, to the descriptor pool."""
    from google.protobuf import descriptor_pb2, descriptor_pool, text_format

    description = descriptor_pb2.FileDescriptorProto()
    v1alpha.CopyToProto(description)
    text = text_format.MessageToString(description).replace("v1alpha", "v1")
    descriptor_pool.Default().Add(
        text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    )  # a second time does no harm
