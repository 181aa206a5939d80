"""The interceptor for a grpc.aio.Server: what Calls does for threads, and threads for the handlers that are `def`.

grpc.aio can run `def` handlers in a pool by itself. But the context that it gives them lacks is_active() and calls
no callback, a stream's thread stays behind when the caller leaves, and there is one pool for all. The services of
goplugin need the first, and must not share a pool with the plugin's own handlers.
"""

import asyncio
import concurrent.futures
import contextlib
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import grpc

from goplugin import calls, log

_log = log.get_logger("goplugin")

_Behavior = Callable[[Any, Any], Awaitable[Any]]


class Calls(calls.Calls, grpc.aio.ServerInterceptor):
    """Sees each call of the plugin's services."""

    def __init__(self, threads: Executor) -> None:
        """threads: for what must be heard whatever the plugin's own handlers do."""
        super().__init__(threads)
        self.workers: Executor | None = None  # for the plugin's own `def` handlers; None is asyncio's own
        self._running: set[asyncio.Task[Any]] = set()  # calls of the plugin's own handlers

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:  # type: ignore[override]
        """Return the method's handler, with what raises in it answered, and what is `def` in a thread."""
        self.consulted = True
        handler = await continuation(handler_call_details)
        if handler is None and calls.is_reflection(handler_call_details.method):
            described = calls.described_calls(handler_call_details)
            handler = calls.reflection_handler({service for service, call in described if await continuation(call)})
        return self._return(handler, handler_call_details)

    def drain(self, loop: asyncio.AbstractEventLoop, timeout: float) -> bool:
        """Wait in another thread until no `async def` handler runs. False if the loop did not even look."""
        looked = threading.Event()

        async def drained() -> None:
            looked.set()
            while self._running:
                await asyncio.wait(self._running.copy())

        done, _ = concurrent.futures.wait([submit(drained(), loop)], timeout)
        return bool(done) or looked.is_set()

    def _guard(self, handler: Any, method: str) -> Any:
        name, behavior = calls.behavior_of(handler)
        always = method.startswith(calls.ALWAYS) or hasattr(behavior, "experimental_thread_pool")
        if inspect.isasyncgenfunction(behavior):
            behavior = _writes_all(behavior)
        elif not inspect.iscoroutinefunction(behavior):
            threads = self._threads if always else self.workers
            behavior = _in_thread(self._in_this_thread(behavior, method, handler), method, handler, threads)

        async def guarded(request: Any, context: Any) -> Any:
            task: Any = asyncio.current_task()
            if not always:
                self._running.add(task)
            try:
                return await behavior(request, context)
            except grpc.aio.AbortError:
                raise
            except BaseException as error:
                await self._answer_on_loop(error, context, method)
                raise
            finally:
                self._running.discard(task)
                self.leave_child()

        return handler._replace(**{name: guarded})

    async def _answer_on_loop(self, error: BaseException, context: Any, method: str) -> None:
        """End the call as grpc does for threads: grpc.aio words errors differently, and answers only Exceptions."""
        self.leave_child(error)
        task: Any = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and (sys.version_info < (3, 11) or task.cancelling()):
            return  # the caller has left, or its deadline is over
        called = "Exception calling application" if isinstance(error, Exception) else type(error).__name__
        try:
            text = f"{called}: {error}"
        except Exception:  # noqa: BLE001 its __str__ raises
            text = f"{called}: unprintable"
        _log.error("%s: %s", method, text, exc_info=error)
        await context.abort(context.code() or grpc.StatusCode.UNKNOWN, context.details() or text)


def _in_thread(behavior: Any, method: str, handler: Any, threads: Executor | None) -> _Behavior:
    """Return a coroutine function that runs the method's function in one of the threads."""

    def run(request: Any, context: ThreadContext) -> Any:
        try:
            if not handler.response_streaming:
                return behavior(request, context)
            for response in behavior(request, context):
                context.write(response)
        except Exception as error:
            if not context.is_active() and not isinstance(error, (grpc.RpcError, grpc.aio.AbortError)):
                # Its caller has left, and nobody else will hear of it.
                _log.error("%s: exception in the handler: %s", method, error, exc_info=error)
            raise

    async def in_thread(request: Any, context: Any) -> Any:
        loop = asyncio.get_running_loop()
        of_thread = ThreadContext(context, loop)
        if handler.request_streaming:
            request = of_thread.requests()
        return await loop.run_in_executor(threads, run, request, of_thread)

    return in_thread


def _writes_all(behavior: Callable[..., Any]) -> _Behavior:
    """Return a coroutine function that sends what the asynchronous generator yields, and closes it in any case."""

    async def writes_all(request: Any, context: Any) -> None:
        async with contextlib.aclosing(behavior(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return writes_all


class ThreadContext:
    """A grpc.ServicerContext for a handler in a thread, of a call that a loop serves."""

    def __init__(self, context: Any, loop: asyncio.AbstractEventLoop) -> None:
        """context: the call's grpc.aio.ServicerContext."""
        self._context, self._loop = context, loop
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] | None = []  # None: the call has ended
        context.add_done_callback(self._end)

    def __getattr__(self, name: str) -> Any:
        """Take all that does not wait from the loop's context, as grpc does."""
        function = getattr(self._context, name)
        if name not in ("peer", "peer_identities", "peer_identity_key", "auth_context"):
            return function

        def while_active() -> Any:
            with self._lock:
                if self._callbacks is None:  # grpcio would crash: the call is not there any more
                    raise grpc.RpcError("the call has ended")
                return function()

        return while_active

    def is_active(self) -> bool:
        """Whether the call is in progress."""
        return self._callbacks is not None

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have it called when the call ends; False if it has ended."""
        with self._lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def _end(self, _: Any) -> None:
        with self._lock:
            callbacks, self._callbacks = self._callbacks or [], None
        for callback in callbacks:
            callback()

    def cancel(self) -> None:
        """End the call, for its caller with CANCELLED."""
        with contextlib.suppress(grpc.RpcError, grpc.aio.AbortError):
            self.abort(grpc.StatusCode.CANCELLED, "")

    def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()) -> None:
        """End the call, and raise."""
        self._wait(self._context.abort, code, details, trailing_metadata)

    def abort_with_status(self, status: Any) -> None:
        """End the call, and raise."""
        self.abort(status.code, status.details, status.trailing_metadata or ())

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send it now."""
        self._wait(self._context.send_initial_metadata, initial_metadata)

    def write(self, response: Any) -> None:
        """Send a message of a stream, and return once it is sent."""
        self._wait(self._context.write, response)

    def requests(self) -> Iterator[Any]:
        """Return the messages that come in. RpcError if the caller leaves."""
        try:
            while (message := self._wait(self._context.read)) is not grpc.aio.EOF:
                yield message
        except (grpc.RpcError, GeneratorExit):
            raise
        except Exception:  # noqa: BLE001 whatever the message class raises, as in grpc for threads
            self.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")
        if not self.is_active():
            raise grpc.RpcError("the caller has left")

    def _wait(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Run it on the loop, if the call is still there: grpc does not check that."""

        async def run() -> Any:
            if not self.is_active():
                raise grpc.RpcError("the call has ended")
            try:
                return await function(*arguments)
            except grpc.aio.AbortError:
                raise
            except grpc.aio.BaseError as error:
                raise grpc.RpcError(f"the call has ended: {error}") from error

        return submit(run(), self._loop).result()


grpc.ServicerContext.register(ThreadContext)


def submit(coroutine: Any, loop: asyncio.AbstractEventLoop) -> "concurrent.futures.Future[Any]":
    """Run it on the loop, for another thread; cancelled at once if the loop has ended."""
    try:
        return asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:
        coroutine.close()
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.cancel()
        return future
