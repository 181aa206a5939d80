"""A plugin's methods, as grpc's handlers and protobuf's descriptors tell of them; and the reflection service.

Reflection is what go-plugin's grpc_server.go registers: a tool such as grpcurl lists and calls the services. What it
needs is imported on first use, so it costs nothing at start-up.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from goplugin import log

_V1ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"  # the same, before and after it was declared stable
REFLECTION = {f"{_V1ALPHA}.ServerReflection", f"{_V1}.ServerReflection"}

_log = log.get_logger("goplugin")


def service_of(method: str) -> str:
    """Return "grpc.health.v1.Health" for "/grpc.health.v1.Health/Check"."""
    return method.rpartition("/")[0].removeprefix("/")


def behavior_of(handler: Any) -> tuple[str, Any]:
    """Return the field of a grpc.RpcMethodHandler that has the method's function, and the function."""
    requests, responses = ("stream" if streams else "unary" for streams in handler[:2])
    name = f"{requests}_{responses}"
    return name, getattr(handler, name)


def described_calls(handler_call_details: Any) -> Iterator[Any]:
    """Return the details of a call of each method that an imported module describes.

    grpc has no public list of a server's services. But it tells for each method whether the server has it.
    """
    for module in list(sys.modules.values()):
        descriptor: Any = getattr(module, "__dict__", {}).get("DESCRIPTOR")
        for service in getattr(descriptor, "services_by_name", {}).values():
            for name in service.methods_by_name:
                path = f"/{service.full_name}/{name}"
                yield type(handler_call_details)(path, handler_call_details.invocation_metadata)


def by_service(calls: Iterable[Any]) -> dict[str, list[str]]:
    """Return {"grpc.health.v1.Health": ["Check", "Watch"]} for the details of such calls."""
    services: dict[str, set[str]] = {}
    for call in calls:
        services.setdefault(service_of(call.method), set()).add(call.method.rpartition("/")[2])
    return {service: sorted(services[service]) for service in sorted(services)}


def reflection_handler(services: set[str]) -> Any:
    """Return what answers the reflection service's method; None if grpcio-reflection is not installed."""
    try:
        from grpc_reflection.v1alpha import reflection, reflection_pb2
    except ImportError as error:
        log.get_logger("goplugin.reflection").debug("no reflection: pip install grpcio-reflection (%s)", error)
        return None
    _describe_v1(reflection_pb2.DESCRIPTOR)
    return grpc.stream_stream_rpc_method_handler(
        reflection.ReflectionServicer(services | REFLECTION).ServerReflectionInfo,
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


def parser_of(handler: Any, method: str) -> Any:
    """Return the handler's request_deserializer, with what it raises logged: grpc does not name the method."""
    parse = handler.request_deserializer

    def parsed(data: bytes) -> Any:
        try:
            return parse(data)
        except Exception as error:
            kind: Any = getattr(parse, "__self__", None)
            expected = kind.DESCRIPTOR.full_name if hasattr(kind, "DESCRIPTOR") else "request"
            _log.error("%s: what came is no %s: %d bytes, %.40r (%s)", method, expected, len(data), data, error)
            raise

    return parse and parsed


def response_check(handler: Any, method: str) -> Callable[[Any], None]:
    """Return a function that raises TypeError if what a handler returns is not the method's response.

    protobuf would serialize a message of any other type, and the host would take it for the right one.
    """
    expected = ""
    generated = getattr(handler.response_serializer, "__name__", "") == "SerializeToString"
    if generated and service_of(method) not in REFLECTION:
        from google.protobuf import descriptor_pool

        with contextlib.suppress(KeyError):  # its description is in a pool of its own
            described: Any = descriptor_pool.Default().FindMethodByName(method[1:].replace("/", "."))
            expected = described.output_type.full_name

    def check(response: Any) -> None:
        descriptor = getattr(response, "DESCRIPTOR", None)
        if expected and (not descriptor or descriptor.full_name != expected):
            what = descriptor.full_name if descriptor else type(response).__name__
            if inspect.iscoroutine(response):
                response.close()
                what = "coroutine: `async def` is for goplugin.aio"
            raise TypeError(f"{method} must return a {expected}, and returned a {what}")

    return check
