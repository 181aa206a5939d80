"""gRPC reflection, as go-plugin's grpc_server.go registers it: a tool such as grpcurl lists and calls the services.

What it needs is imported on first use, so it costs nothing at start-up.
"""

import sys
from collections.abc import Iterator
from typing import Any

import grpc

from goplugin import log

_log = log.get_logger("goplugin.reflection")

_V1ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"  # the same, before and after it was declared stable
_SERVICES = {f"{_V1ALPHA}.ServerReflection", f"{_V1}.ServerReflection"}


def is_reflection(method: str) -> bool:
    """Whether it is a method of the reflection service, such as "/grpc.reflection.v1.ServerReflection/..."."""
    return method.rpartition("/")[0].removeprefix("/") in _SERVICES


def calls(handler_call_details: Any) -> Iterator[tuple[str, Any]]:
    """Return the details of a call of each method that an imported module describes, with the name of its service.

    grpc has no public list of a server's services. But it tells for each method whether the server has it.
    """
    for module in list(sys.modules.values()):
        descriptor: Any = getattr(module, "__dict__", {}).get("DESCRIPTOR")
        for service in getattr(descriptor, "services_by_name", {}).values():
            for method in service.methods_by_name:
                path = f"/{service.full_name}/{method}"
                yield service.full_name, type(handler_call_details)(path, handler_call_details.invocation_metadata)


def handler(services: set[str]) -> Any:
    """Return what answers the reflection service's method; None if grpcio-reflection is not installed."""
    try:
        from grpc_reflection.v1alpha import reflection, reflection_pb2
    except ImportError as error:
        _log.debug("no reflection: pip install grpcio-reflection (%s)", error)
        return None
    _describe_v1(reflection_pb2.DESCRIPTOR)
    return grpc.stream_stream_rpc_method_handler(
        reflection.ReflectionServicer(services | _SERVICES).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )


def _describe_v1(v1alpha: Any) -> None:
    """Add the description of grpc.reflection.v1, which grpcio-reflection lacks, to the descriptor pool."""
    from google.protobuf import descriptor_pb2, descriptor_pool, text_format

    description = descriptor_pb2.FileDescriptorProto()
    v1alpha.CopyToProto(description)
    text = text_format.MessageToString(description).replace("v1alpha", "v1")
    descriptor_pool.Default().Add(
        text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    )  # a second time does no harm
