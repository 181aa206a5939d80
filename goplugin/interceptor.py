"""The interceptor: it answers calls that gRPC would leave hanging, and logs errors of handlers and unknown methods."""

import collections
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any

import grpc

from goplugin import log
from goplugin.methods import (
    REFLECTION,
    behavior_of,
    by_service,
    described_calls,
    parser_of,
    reflection_handler,
    response_check,
    service_of,
)

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
ALWAYS = ("/grpc.health.v1.Health/", "/grpc.reflection.")
OURS = (*ALWAYS, "/plugin.GRPC")

_log = log.get_logger("goplugin")


class Interceptor(grpc.ServerInterceptor):
    """Wraps the handler of each method that the plugin serves.

    grpc never answers a call whose handler raises SystemExit, KeyboardInterrupt or asyncio.CancelledError, or an
    Exception whose text is not valid UTF-8. It answers other exceptions, but its log does not name the method.

    consulted: whether a server has asked this interceptor for a handler.
    on_method(handler_call_details, handler): called at the first call of each method.
    """

    def __init__(self, threads: Executor) -> None:
        """threads: for health and reflection, which must answer even if all of the plugin's own handlers are stuck."""
        self.consulted = False
        self.on_method: Callable[[Any, Any], None] = lambda details, handler: None
        self._running: set[Running] = set()  # the plugin's own handlers that run in threads now
        self._threads = threads
        self._pid = os.getpid()
        self._guarded: dict[str, tuple[Any, Any]] = {}  # by method: grpc's handler, and the one we return instead
        self._served: dict[str, list[str]] = {}  # methods by service; filled at the first call of an unknown method
        self._missing: set[str] = set()  # services that a caller asked for in vain

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the method's handler, wrapped; None if there is no such method."""
        self.consulted = True
        handler = continuation(handler_call_details)
        if handler is None and not self._served:
            self._served = by_service(call for call in described_calls(handler_call_details) if continuation(call))
        return self._return(handler, handler_call_details)

    def _return(self, handler: Any, handler_call_details: Any) -> Any:
        """Return the wrapped handler; None if there is no such method."""
        method = handler_call_details.method
        if handler is None and service_of(method) in REFLECTION:
            handler = reflection_handler(set(self._served))
        if handler is None:
            self._tell_missing(method)
            return None
        seen, guarded = self._guarded.get(method, (None, None))
        if seen is not handler:
            guarded = self._guard(handler, method)
            self._guarded[method] = handler, guarded
            self.on_method(handler_call_details, handler)
        return guarded

    def _tell_missing(self, method: str) -> None:
        """Log a call of an unknown method. Hosts often try optional methods, but seldom optional services."""
        service = service_of(method)
        if method.startswith("/grpc.health."):
            _log.error(
                "the host calls the health service, but there is none: call add_HealthServicer_to_server in main()"
            )
        elif service in self._served or method.startswith(ALWAYS):
            there = ", ".join(self._served.get(service, ["nothing"]))
            _log.debug("%s is not implemented; the service has %s", method, there)
        else:
            own = [name for name in self._served if not name.startswith(("grpc.", "plugin."))]
            level = logging.DEBUG if service in self._missing or len(self._missing) > 99 else logging.WARNING
            self._missing.add(service)
            there = ", ".join(own) or "none that a generated module describes"
            _log.log(
                level, "%s is not implemented: there is no service %s; this plugin serves %s", method, service, there
            )

    def _guard(self, handler: Any, method: str) -> Any:
        name, behavior = behavior_of(handler)
        if hasattr(behavior, "experimental_thread_pool"):
            return handler  # a service of goplugin's, see services/__init__.py
        guarded: Any = self._in_this_thread(behavior, method, handler)
        if method.startswith(OURS):  # ALWAYS, and a service of goplugin's that another interceptor has wrapped
            guarded.experimental_thread_pool = self._threads
        return handler._replace(request_deserializer=parser_of(handler, method), **{name: guarded})

    def _in_this_thread(self, behavior: Callable[..., Any], method: str, handler: Any) -> Callable[..., Any]:
        """Return the method's function, wrapped: what it raises is answered, what it returns is checked."""
        check = response_check(handler, method)

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            with Running(self, context, method):
                response = behavior(request, context)
                check(response)
                check_health(method, request, context)
                return response

        def streaming(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with Running(self, context, method):
                for response in behavior(request, context):
                    check(response)
                    yield response

        return streaming if handler.response_streaming else unary

    def leave_child(self, error: BaseException | None = None) -> None:
        """End this process if a handler made it with os.fork(): it must not go on as a thread of the pool."""
        if os.getpid() != self._pid:
            code = error.code if isinstance(error, SystemExit) else int(error is not None)
            os._exit(code if isinstance(code, int) else int(code is not None))

    def answer(self, error: BaseException, context: Any, method: str) -> None:
        """Log what a handler raised, and end the call with its text."""
        self.leave_child(error)
        code, details = context.code(), context.details()
        if isinstance(error, NotImplementedError) and code is grpc.StatusCode.UNIMPLEMENTED:
            # Generated code raises this for methods that the servicer does not define. Hosts often try such methods.
            _log.debug("%s is not implemented: the servicer's class does not define it", method)
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented")
        plain = isinstance(error, Exception) and not error.args
        aborted = isinstance(error, grpc.aio.AbortError) or (plain and code and details is not None)
        if aborted or (isinstance(error, grpc.RpcError) and not context.is_active()):
            return  # context.abort() raised it, or grpc raised it because the caller has left
        log_error(error, method)
        context.abort(*status_of(error, context))

    def unfinished(self) -> list["Running"]:
        """Return the plugin's own handlers that still run."""
        return list(self._running)

    def warn_full(self) -> None:
        """Log that all threads are busy, and with which methods."""
        _log.warning(
            "all threads are busy, and further calls wait: %s. A handler must end when its caller has left: see"
            " context.add_callback(). If the callers still wait, raise the limit: goplugin.Workers(max_threads=...)",
            summary(self._running),
        )


class Running:
    """A handler that runs in this thread. Use it in a `with` around the handler: it answers what the handler raises."""

    __slots__ = ("_interceptor", "context", "method", "since")

    def __init__(self, interceptor: Interceptor, context: Any, method: str) -> None:
        self._interceptor, self.context, self.method = interceptor, context, method
        self.since = time.monotonic()

    def has_lost_its_caller(self) -> bool:
        """Whether the caller has left. False for an `async def` handler: grpc.aio does not tell."""
        return hasattr(self.context, "is_active") and not self.context.is_active()

    def __enter__(self) -> None:
        """Remember the handler, if it is the plugin's own."""
        if not self.method.startswith(OURS):
            self._interceptor._running.add(self)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Answer what the handler raised."""
        self._interceptor._running.discard(self)
        if error and not isinstance(error, GeneratorExit):
            self._interceptor.answer(error, self.context, self.method)
        self._interceptor.leave_child()


def summary(running: Iterable[Running]) -> str:
    """Return, for each method, how many handlers run, for how long, and how many have lost their caller."""
    now, by_method = time.monotonic(), collections.defaultdict[str, list[Running]](list)
    for call in list(running):
        by_method[call.method].append(call)
    texts = []
    for method, calls in by_method.items():
        lost = sum(call.has_lost_its_caller() for call in calls)
        age = now - min(call.since for call in calls)
        without = f", {lost} of them without their caller" if lost else ""
        texts.append(f"{method} ({len(calls)} running, for up to {age:.1f} s{without})")
    return ", ".join(texts)


def log_error(error: BaseException, method: str) -> None:
    """Log what a handler raised."""
    _log.error("%s: %s", method, text_of(error), exc_info=error)


def status_of(error: BaseException, context: Any) -> tuple[grpc.StatusCode, str]:
    """Return the code and details for a call whose handler raised this error."""
    code, details = context.code(), context.details() or text_of(error)
    if isinstance(details, bytes):  # grpc's contexts for threads return bytes
        details = details.decode()
    return grpc.StatusCode.UNKNOWN if code in (None, grpc.StatusCode.OK) else code, details


def text_of(error: BaseException) -> str:
    """Return the text for the caller, worded as grpc words it."""
    name = type(error).__name__
    try:
        text = sendable(str(error))
    except Exception:  # noqa: BLE001 its __str__ raises
        text = "unprintable"
    if isinstance(error, Exception):
        return f"Exception calling application: {text or name}"
    return f"{name}: {text}" if text else name


def sendable(text: str) -> str:
    """Return the text with everything escaped that UTF-8 cannot express, such as parts of some file names."""
    return text.encode("utf-8", "backslashreplace").decode()


def check_health(method: str, request: Any, context: Any) -> None:
    """After the host's health check: log an error if the health service does not know the name "plugin"."""
    if method == HEALTH_CHECK and request.service == "plugin" and context.code() is grpc.StatusCode.NOT_FOUND:
        _log.error(
            'the host asks the health service for the name "plugin", but the service does not know it: call'
            ' health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING) in main()'
        )
