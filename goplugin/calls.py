"""An interceptor for what grpc leaves open: handlers that end by SystemExit, methods nobody wrote, and reflection.

Reflection is what go-plugin's grpc_server.go registers: a tool such as grpcurl lists and calls the services. What it
needs is imported on first use, so it costs nothing at start-up.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import grpc

from goplugin import log

ALWAYS = ("/grpc.health.v1.Health/", "/grpc.reflection.")

_V1ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"  # the same, before and after it was declared stable
_SERVICES = {f"{_V1ALPHA}.ServerReflection", f"{_V1}.ServerReflection"}

_log = log.get_logger("goplugin")


class Calls(grpc.ServerInterceptor):
    """Sees each call of the plugin's services.

    grpc answers a call whose handler raises an Exception, but never one whose handler raises SystemExit,
    KeyboardInterrupt or asyncio.CancelledError: that call would wait for ever, and nothing would be logged.

    consulted: whether a server has asked this interceptor for a handler.
    on_method(handler_call_details, handler): called at the first call of each method.
    """

    def __init__(self, threads: Executor) -> None:
        """threads: for health and reflection, which answer however many of the plugin's own handlers are stuck."""
        self.consulted = False
        self.on_method: Callable[[Any, Any], None] = lambda details, handler: None
        self._threads = threads
        self._pid = os.getpid()
        self._guarded: dict[str, tuple[Any, Any]] = {}  # by method: grpc's handler, and what we return for it

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the method's handler, with what raises in it answered."""
        self.consulted = True
        handler = continuation(handler_call_details)
        if handler is None and is_reflection(handler_call_details.method):
            found = {service for service, call in described_calls(handler_call_details) if continuation(call)}
            handler = reflection_handler(found)
        return self._return(handler, handler_call_details)

    def _return(self, handler: Any, handler_call_details: Any) -> Any:
        """Return the handler, with what raises in it answered; None if there is none."""
        method = handler_call_details.method
        if handler is None:
            if method.startswith("/grpc.health."):
                _log.error(
                    "the host calls the health service, and there is none: call add_HealthServicer_to_server in main()"
                )
            else:
                _log.debug("%s is not implemented", method)  # hosts try optional methods all the time
            return None
        seen, guarded = self._guarded.get(method, (None, None))
        if seen is not handler:
            guarded = self._guard(handler, method)
            self._guarded[method] = handler, guarded
            self.on_method(handler_call_details, handler)
        return guarded

    def _guard(self, handler: Any, method: str) -> Any:
        name, behavior = behavior_of(handler)
        if hasattr(behavior, "experimental_thread_pool"):
            return handler  # one of our own, see services/__init__.py
        guarded: Any = self._in_this_thread(behavior, method, handler)
        if method.startswith(ALWAYS):
            guarded.experimental_thread_pool = self._threads
        return handler._replace(**{name: guarded})

    def _in_this_thread(self, behavior: Callable[..., Any], method: str, handler: Any) -> Callable[..., Any]:
        """Return the method's function, with what raises in it answered."""

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            with _Answered(self, context, method):
                return behavior(request, context)

        def streaming(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with _Answered(self, context, method):
                yield from behavior(request, context)

        return streaming if handler.response_streaming else unary

    def leave_child(self, error: BaseException | None = None) -> None:
        """End a child that a handler made by os.fork(): it must not go on as a thread of the pool."""
        if os.getpid() != self._pid:
            code = error.code if isinstance(error, SystemExit) else int(error is not None)
            os._exit(code if isinstance(code, int) else int(code is not None))

    def answer(self, error: BaseException, context: grpc.ServicerContext, method: str) -> None:
        """End the call where grpc would leave it hanging, or would log a false error."""
        self.leave_child(error)
        code: Any = getattr(context, "code", lambda: None)  # newer than the oldest grpcio, and than its type hints
        if isinstance(error, NotImplementedError) and code() is grpc.StatusCode.UNIMPLEMENTED:
            # As generated code does. Hosts try optional methods all the time.
            _log.debug("%s is not implemented", method)
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented")
        if not isinstance(error, Exception):
            _log.error("%s: %s in the handler", method, type(error).__name__, exc_info=error)
            context.abort(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}")
        if code() is None and logging.getLogger("grpc._server").disabled:
            # By logging.config, as it does by default: grpc's own record of this exception would be lost.
            _log.error("%s: exception in the handler: %s", method, error, exc_info=error)


class _Answered:
    """For a `with` around a handler: what it raises is answered."""

    def __init__(self, calls: Calls, context: grpc.ServicerContext, method: str) -> None:
        self._calls, self._context, self._method = calls, context, method

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error and not isinstance(error, GeneratorExit):
            self._calls.answer(error, self._context, self._method)
        self._calls.leave_child()


def behavior_of(handler: Any) -> tuple[str, Any]:
    """Return the field of a grpc.RpcMethodHandler that has the method's function, and the function."""
    requests, responses = ("stream" if streams else "unary" for streams in handler[:2])
    name = f"{requests}_{responses}"
    return name, getattr(handler, name)


def is_reflection(method: str) -> bool:
    """Whether it is a method of the reflection service, such as "/grpc.reflection.v1.ServerReflection/..."."""
    return method.rpartition("/")[0].removeprefix("/") in _SERVICES


def described_calls(handler_call_details: Any) -> Iterator[tuple[str, Any]]:
    """Return the details of a call of each method that an imported module describes, with the name of its service.

    grpc has no public list of a server's services. But it tells for each method whether the server has it.
    """
    for module in list(sys.modules.values()):
        descriptor: Any = getattr(module, "__dict__", {}).get("DESCRIPTOR")
        for service in getattr(descriptor, "services_by_name", {}).values():
            for method in service.methods_by_name:
                path = f"/{service.full_name}/{method}"
                yield service.full_name, type(handler_call_details)(path, handler_call_details.invocation_metadata)


def reflection_handler(services: set[str]) -> Any:
    """Return what answers the reflection service's method; None if grpcio-reflection is not installed."""
    try:
        from grpc_reflection.v1alpha import reflection, reflection_pb2
    except ImportError as error:
        log.get_logger("goplugin.reflection").debug("no reflection: pip install grpcio-reflection (%s)", error)
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
