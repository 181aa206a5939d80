"""What grpc's handlers and protobuf's descriptors say about a plugin's methods; and the reflection service.

go-plugin's grpc_server.go registers reflection too: with it, a tool such as grpcurl lists and calls the services. Its
modules are imported on first use, so it costs nothing at start-up.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from goplugin import log

_V1ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"  # the same service, before and after it became stable
REFLECTION = {f"{_V1ALPHA}.ServerReflection", f"{_V1}.ServerReflection"}

_log = log.get_logger("goplugin")


def service_of(method: str) -> str:
    """Return the service of a method: "grpc.health.v1.Health" for "/grpc.health.v1.Health/Check"."""
    return method.rpartition("/")[0].removeprefix("/")


def behavior_of(handler: Any) -> tuple[str, Any]:
    """Return the method's function, after the name of the field of grpc.RpcMethodHandler that holds it."""
    requests, responses = ("stream" if streams else "unary" for streams in handler[:2])
    name = f"{requests}_{responses}"
    return name, getattr(handler, name)


def described_calls(handler_call_details: Any) -> Iterator[Any]:
    """Yield the details of a call for each method that an imported module describes.

    grpc has no public list of a server's services, but it says for each method whether the server has it.
    """
    for module in list(sys.modules.values()):
        descriptor: Any = getattr(module, "__dict__", {}).get("DESCRIPTOR")
        for service in getattr(descriptor, "services_by_name", {}).values():
            for name in service.methods_by_name:
                path = f"/{service.full_name}/{name}"
                yield type(handler_call_details)(path, handler_call_details.invocation_metadata)


def by_service(calls: Iterable[Any]) -> dict[str, list[str]]:
    """Return the called methods by service, such as {"grpc.health.v1.Health": ["Check", "Watch"]}."""
    services: dict[str, set[str]] = {}
    for call in calls:
        services.setdefault(service_of(call.method), set()).add(call.method.rpartition("/")[2])
    return {service: sorted(services[service]) for service in sorted(services)}


def reflection_handler(services: set[str]) -> Any:
    """Return the handler of the reflection service's method; None if grpcio-reflection is not installed."""
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
    """Describe grpc.reflection.v1 in the descriptor pool. grpcio-reflection describes only v1alpha."""
    from google.protobuf import descriptor_pb2, descriptor_pool, text_format

    description = descriptor_pb2.FileDescriptorProto()
    v1alpha.CopyToProto(description)
    text = text_format.MessageToString(description).replace("v1alpha", "v1")
    descriptor_pool.Default().Add(
        text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    )  # adding it again is harmless


def parser_of(handler: Any, method: str) -> Any:
    """Return the handler's request_deserializer, wrapped: it logs errors with the method, which grpc does not name."""
    parse = handler.request_deserializer

    def parsed(data: bytes) -> Any:
        try:
            return parse(data)
        except Exception as error:
            kind: Any = getattr(parse, "__self__", None)
            expected = kind.DESCRIPTOR.full_name if hasattr(kind, "DESCRIPTOR") else "the request"
            _log.error("%s: cannot parse %s: %d bytes, %.40r (%s)", method, expected, len(data), data, error)
            raise

    return parse and parsed


def response_check(handler: Any, method: str) -> Callable[[Any], None]:
    """Return a function that raises TypeError if a handler's response is not of the method's type.

    Without it, protobuf would serialize a message of another type, and the host would misread it.
    """
    expected = ""
    generated = getattr(handler.response_serializer, "__name__", "") == "SerializeToString"
    if generated and service_of(method) not in REFLECTION:
        from google.protobuf import descriptor_pool

        with contextlib.suppress(KeyError):  # the service is described in another pool
            described: Any = descriptor_pool.Default().FindMethodByName(method[1:].replace("/", "."))
            expected = described.output_type.full_name

    def check(response: Any) -> None:
        descriptor = getattr(response, "DESCRIPTOR", None)
        if expected and (not descriptor or descriptor.full_name != expected):
            what = descriptor.full_name if descriptor else type(response).__name__
            if inspect.iscoroutine(response):
                response.close()
                what = "coroutine: `async def` is for goplugin.aio"
            raise TypeError(f"{method} must return a {expected}, but returned a {what}")

    return check
