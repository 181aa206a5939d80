"""The interceptor for a grpc.aio.Server. It also runs `def` handlers in threads.

grpc.aio itself can run `def` handlers in a pool. But the context that it gives them has no is_active() and calls no
callbacks, a stream's thread stays behind when the caller leaves, and all handlers share one pool. goplugin's services
need is_active() and callbacks, and must not share a pool with the plugin's own handlers.
"""

import asyncio
import concurrent.futures
import contextlib
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import grpc

from goplugin import interceptor, methods

_Behavior = Callable[[Any, Any], Awaitable[Any]]


class Interceptor(interceptor.Interceptor, grpc.aio.ServerInterceptor):
    """Wraps the handler of each method that the plugin serves."""

    def __init__(self, threads: Executor) -> None:
        """threads: for calls that must be answered whatever the plugin's own handlers do."""
        super().__init__(threads)
        self.workers: Executor | None = None  # for the plugin's own `def` handlers; None means asyncio's own
        # The tasks of the plugin's own handlers; None for `def` handlers.
        self._tasks: dict[asyncio.Task[Any], interceptor.Running | None] = {}

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:  # type: ignore[override]
        """Return the method's handler, wrapped; None if there is no such method."""
        self.consulted = True
        handler = await continuation(handler_call_details)
        if handler is None and not self._served:
            described = methods.described_calls(handler_call_details)
            self._served = methods.by_service([call for call in described if await continuation(call)])
        return self._return(handler, handler_call_details)

    def drain(self, loop: asyncio.AbstractEventLoop, timeout: float) -> bool:
        """Wait until no `async def` handler runs. False if the loop was blocked all the time.

        Call it in another thread than the loop's. timeout: in seconds.
        """
        looked = threading.Event()

        async def drained() -> None:
            looked.set()
            while self._tasks:
                await asyncio.wait(list(self._tasks))

        done, _ = concurrent.futures.wait([submit(drained(), loop)], timeout)
        return bool(done) or looked.is_set()

    def unfinished(self) -> list[interceptor.Running]:
        """Return the plugin's own handlers that still run, in threads or on the loop."""
        return [*super().unfinished(), *filter(None, self._tasks.values())]

    def _guard(self, handler: Any, method: str) -> Any:
        name, behavior = methods.behavior_of(handler)
        always = method.startswith(interceptor.OURS)
        check = methods.response_check(handler, method)
        on_loop = inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)
        if inspect.isasyncgenfunction(behavior):
            behavior = _writes_all(behavior)
        elif not on_loop:
            threads = self._threads if always else self.workers
            behavior = _in_thread(self._in_this_thread(behavior, method, handler), handler, threads)

        async def guarded(request: Any, context: Any) -> Any:
            context = Context(context, check)
            task: Any = asyncio.current_task()
            if not always:
                self._tasks[task] = interceptor.Running(self, context, method) if on_loop else None
            try:
                response = await behavior(request, context)
                if not handler.response_streaming:
                    check(response)
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError as error:
                self.leave_child(error)
                await _answer_cancelled(error, context, method)
            except BaseException as error:
                self.leave_child(error)
                interceptor.log_error(error, method)
                await context.abort(*interceptor.status_of(error, context))
                raise
            finally:
                interceptor.check_health(method, request, context)
                self._tasks.pop(task, None)
                self.leave_child()
            return response

        return handler._replace(request_deserializer=methods.parser_of(handler, method), **{name: guarded})


async def _answer_cancelled(error: BaseException, context: "Context", method: str) -> None:
    """End a call whose task was cancelled: by grpc because the caller has left, or by the handler itself."""
    try:
        await context.abort(*interceptor.status_of(error, context))
    except grpc.aio.AbortError:  # the caller still waits
        interceptor.log_error(error, method)
        raise
    except grpc.aio.BaseError:
        raise error from None


def _in_thread(behavior: Any, handler: Any, threads: Executor | None) -> _Behavior:
    """Return a coroutine function that runs the method's function in one of the threads."""

    def run(request: Any, context: ThreadContext) -> Any:
        responses = behavior(request, context)
        if not handler.response_streaming:
            return responses
        for response in responses:
            context.write(response)
        return None

    async def in_thread(request: Any, context: Any) -> Any:
        loop = asyncio.get_running_loop()
        of_thread = ThreadContext(context, loop)
        if handler.request_streaming:
            request = of_thread.requests()
        return await loop.run_in_executor(threads, run, request, of_thread)

    return in_thread


def _writes_all(behavior: Callable[..., Any]) -> _Behavior:
    """Return a coroutine function that sends what the asynchronous generator yields, and always closes it."""

    async def writes_all(request: Any, context: Any) -> None:
        async with contextlib.aclosing(behavior(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return writes_all


class Context:
    """A grpc.aio.ServicerContext that refuses messages of a wrong type, and accepts any text as details."""

    def __init__(self, context: Any, check: Callable[[Any], None]) -> None:
        self._context, self._check = context, check

    def __getattr__(self, name: str) -> Any:
        """Return everything else from grpc's context."""
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        """Send a message of a stream."""
        self._check(message)
        await self._context.write(message)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """End the call, and raise."""
        await self._context.abort(code, interceptor.sendable(details), trailing_metadata)

    async def abort_with_status(self, status: Any) -> None:
        """End the call, and raise."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_details(self, details: str) -> None:
        """Set the text that the caller gets with the code."""
        self._context.set_details(interceptor.sendable(details))


class ThreadContext:
    """A grpc.ServicerContext for a `def` handler: the handler runs in a thread, and a loop serves its call."""

    def __init__(self, context: Any, loop: asyncio.AbstractEventLoop) -> None:
        """context: the call's grpc.aio.ServicerContext."""
        self._context, self._loop = context, loop
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] | None = []  # None: the call has ended
        context.add_done_callback(self._end)

    def __getattr__(self, name: str) -> Any:
        """Return everything that does not wait from the loop's context, as grpc does."""
        function = getattr(self._context, name)
        if name not in ("peer", "peer_identities", "peer_identity_key", "auth_context"):
            return function

        def while_active() -> Any:
            with self._lock:
                if self._callbacks is None:  # grpcio would crash: it has freed the call
                    raise grpc.RpcError("the call has ended")
                return function()

        return while_active

    def is_active(self) -> bool:
        """Whether the call is in progress."""
        return self._callbacks is not None

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call the callback when the call ends. False if the call has ended already."""
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
        """End the call; its caller gets CANCELLED."""
        with contextlib.suppress(grpc.RpcError, grpc.aio.AbortError):
            self.abort(grpc.StatusCode.CANCELLED, "")

    def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()) -> None:
        """End the call, and raise."""
        self._wait(self._context.abort, code, details, trailing_metadata)

    def abort_with_status(self, status: Any) -> None:
        """End the call, and raise."""
        self.abort(status.code, status.details, status.trailing_metadata or ())

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send the metadata now."""
        self._wait(self._context.send_initial_metadata, initial_metadata)

    def write(self, response: Any) -> None:
        """Send a message of a stream, and return once it is sent."""
        self._wait(self._context.write, response)

    def requests(self) -> Iterator[Any]:
        """Yield the messages that come in. RpcError if the caller leaves."""
        try:
            while (message := self._wait(self._context.read)) is not grpc.aio.EOF:
                yield message
        except (grpc.RpcError, GeneratorExit):
            raise
        except Exception:  # noqa: BLE001 the message class may raise anything; grpc for threads does the same
            self.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")
        if not self.is_active():
            raise grpc.RpcError("the caller has left")

    def _wait(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Run the function on the loop and return its result. RpcError if the call has ended: grpc does not check."""

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
    """Run the coroutine on the loop, for another thread. The future is cancelled at once if the loop is closed."""
    try:
        return asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:
        coroutine.close()
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.cancel()
        return future
