"""A plugin whose service does what a test asks: it prints, logs, raises, waits, starts children.

Its messages are JSON, so that it needs no .proto: /probe.Probe/METHOD.
"""

import goplugin

import asyncio
import atexit
import ctypes
import inspect
import io
import json
import logging
import logging.config
import multiprocessing
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

# Output of every kind during the import of the script; it would break other plugins.
if "PROBE_NOISY" in os.environ:
    print("stray print at import")
    os.write(1, b"stray write to file descriptor 1\n")
    library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    library.puts(b"stray line of a C library")
    library.fflush(None)
    subprocess.run([*(["cmd", "/c"] if sys.platform == "win32" else []), "echo", "stray line of a child"], check=True)
    os.system("echo stray line of a shell")
    print("1|1|tcp|127.0.0.1:1|grpc")
    print("x" * 100_000)

if os.environ.get("PROBE_NOISY") == "json":
    print('{"@message": 1}')
    logging.StreamHandler(sys.stderr).handle(logging.makeLogRecord({"msg": '{"@timestamp": 2}'}))
    print('hello\n{"@message": 3}')
    sys.stdout.write(" ")
    print('\t{"@message": 4}')
    sys.stdout.write("\n")
    sys.stderr.write('{"@message": 5}\n')
    atexit.register(print, '{"@message": 6}')
if "PROBE_WRAPPED" in os.environ:  # as programs do for another encoding or for colours
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", write_through=True)
if "PROBE_FAILS" in os.environ:
    raise RuntimeError("it fails at import")

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from actions import Call, children, dials, handlers, on_asyncio, own_process

ACTIONS = {module.__name__: module for module in (children, dials, handlers, on_asyncio, own_process)}


class Probe:
    """The methods; each takes and returns JSON values."""

    def __init__(self, plugin: Any) -> None:
        self.plugin = plugin
        self.accepted: dict[int, Any] = {}

    def act(self, argument: list[Any], context: grpc.ServicerContext) -> Any:
        """[module, name, *arguments]: call a function of the package actions."""
        module, name, *arguments = argument
        return getattr(ACTIONS[module], name)(Call(self.plugin, context), *arguments)

    def echo(self, argument: Any, context: grpc.ServicerContext) -> Any:
        return argument

    def version(self, argument: Any, context: grpc.ServicerContext) -> int:
        version: int = self.plugin.version
        return version

    def sleep(self, seconds: float, context: grpc.ServicerContext) -> None:
        time.sleep(seconds)

    def block(self, seconds: float, context: grpc.ServicerContext) -> None:
        time.sleep(seconds)

    def sleep_then_write(self, argument: list[Any], context: grpc.ServicerContext) -> None:
        seconds, path = argument
        time.sleep(seconds)
        with open(path, "w") as file:
            file.write("done")

    def fail(self, message: str, context: grpc.ServicerContext) -> None:
        raise ValueError(message)

    def fail_in_thread(self, message: str, context: grpc.ServicerContext) -> None:
        thread = threading.Thread(target=Probe.fail, args=(self, message, context), name="of-the-plugin")
        thread.start()
        thread.join()

    def hold_thread(self, argument: None, context: grpc.ServicerContext) -> None:
        """Start a thread that runs for an hour, and that Python waits for when it exits."""
        threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()

    def write_fd(self, argument: list[Any], context: grpc.ServicerContext) -> None:
        fd, text, times = argument
        for _ in range(times):
            os.write(fd, text.encode())

    def child(self, argument: list[str], context: grpc.ServicerContext) -> list[int]:
        """Start a child that outlives the plugin, without its stderr as README advises. Returns its descriptors."""
        process = subprocess.Popen(
            [sys.executable, "-c", "import os, time; print(*os.listdir('/proc/self/fd'), flush=True); time.sleep(8)"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            close_fds=False,  # so it inherits what is inheritable
            text=True,
        )
        assert process.stdout
        return [int(fd) for fd in process.stdout.readline().split()]

    def fork(self, argument: None, context: grpc.ServicerContext) -> int:
        """Fork without exec: the child closes stderr and stays for 8 s."""
        pid = os.fork()
        if pid == 0:
            os.close(1)
            os.close(2)
            time.sleep(8)
            os._exit(0)
        return pid

    def pool(self, argument: None, context: grpc.ServicerContext) -> list[int]:
        """Use a pool: multiprocessing forks its workers, and ends them by SIGTERM."""
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, -2, -3])

    def fork_and_print(self, text: str, context: grpc.ServicerContext) -> int:
        """Have a forked child print; returns its exit code."""
        child = multiprocessing.get_context("fork").Process(target=print, args=(text,))
        child.start()
        child.join(10)
        return -1 if child.exitcode is None else child.exitcode

    def dict_config(self, argument: None, context: grpc.ServicerContext) -> None:
        """Make an ordinary configuration, which disables all existing loggers."""
        logging.config.dictConfig({"version": 1})

    def log_to_stdout(self, argument: None, context: grpc.ServicerContext) -> None:
        """Print every record of the plugin's code, too."""
        logging.getLogger().addHandler(logging.StreamHandler(sys.stdout))

    def unraisable(self, message: str, context: grpc.ServicerContext) -> None:
        class Ends:
            def __del__(self) -> None:
                raise ValueError(message)

        Ends()

    def sigterm(self, argument: None, context: grpc.ServicerContext) -> None:
        """Send SIGTERM to a thread other than the main thread, which does not wake up then."""
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    def signal_of_child(self, argument: None, context: grpc.ServicerContext) -> int:
        """The exit code of a child that sends itself SIGINT."""
        code = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
        return subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL).returncode

    def print(self, argument: list[Any], context: grpc.ServicerContext) -> None:
        """[stream, text, times, threads]: each thread prints the text so often, with its number for each #."""
        stream, text, times, threads = argument

        def run(number: int) -> None:
            for _ in range(times):
                getattr(sys, stream).write(text.replace("#", str(number)))

        all_threads = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for thread in all_threads:
            thread.start()
        for thread in all_threads:
            thread.join()

    def print_bytes(self, argument: list[Any], context: grpc.ServicerContext) -> None:
        """[seed, size]: that many random bytes."""
        for chunk in random_chunks(*argument):
            sys.stdout.buffer.write(chunk)

    def memory(self, argument: None, context: grpc.ServicerContext) -> int:
        """The highest resident size of this process so far, in bytes."""
        if sys.platform == "win32":
            import psutil

            return psutil.Process().memory_info().peak_wset
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def log(self, argument: list[Any], context: grpc.ServicerContext) -> None:
        """[level, message, extra]"""
        level, message, extra = argument
        logging.getLogger("probe.module").log(level, message, extra=extra)

    def log_odd(self, case: str, context: grpc.ServicerContext) -> None:
        """Log unusual records."""
        logger = logging.getLogger("probe.odd")
        circle: list[Any] = []
        circle.append(circle)
        match case:
            case "newlines":
                logger.info("one\ntwo\r\nthree\u2028four")
            case "not utf-8":
                logger.info(b"\xff\xfe".decode("utf-8", "surrogateescape"), extra={"raw": b"\xff"})
            case "no json":
                logger.info("odd", extra={"nan": float("nan"), "set": {1}, "circle": circle, "object": object()})
            case "nested":
                logger.info("odd", extra={"deep": {"a": [1, {"b": None}], ("tuple",): 1}})
            case "reserved":
                logger.info("odd", extra={"@level": 5, "@message": [], "@timestamp": 1, "@module": None})
            case "keys":
                record = logger.makeRecord("probe.odd", logging.INFO, "f", 1, "odd", (), None)
                record.__dict__[7] = "seven"  # type: ignore[index]
                logger.handle(record)
            case "message":
                logger.info({"a": 1})
            case "format":
                logger.info("%d of %s", "three")  # noqa: PLE1206
            case "raises":
                logger.info("%s", Raises(), extra={"pair": Raises()})
            case "exception raises":
                try:
                    raise RaisesToo
                except RaisesToo:
                    logger.exception("odd")
            case "big":
                logger.info("x" * 1_000_000, extra={"pair": "y" * 1_000_000})
            case "many":
                logger.info("odd", extra={f"key{i}": "z" * 20 for i in range(10_000)})
            case "numbers":
                logger.info("odd", extra={"id": 2**53 + 1, "huge": 10**400, "nested": [10**400], "plain": 7})
            case "json":
                logger.info('{"@level": 5, "@message": {}}')
            case "warning":
                warnings.warn("a warning of the plugin", stacklevel=1)
            case "stack":
                logger.info("odd", stack_info=True)
            case _:
                raise ValueError(case)

    def dial(self, argument: list[Any], context: grpc.ServicerContext) -> str:
        """[id, text, size]: call the host's service under the id, which echoes requests."""
        service_id, text, size = argument
        with self.plugin.broker.dial(service_id) as channel:
            answer: bytes = channel.unary_unary("/any.Service/Method")((text * size).encode(), timeout=20)
        return "the same" if answer == (text * size).encode() else "different"

    def next_id(self, argument: None, context: grpc.ServicerContext) -> int:
        service_id: int = self.plugin.broker.next_id()
        return service_id

    def accept(self, service_id: int, context: grpc.ServicerContext) -> None:
        """Serve this probe to the host under the id."""
        self.accepted[service_id] = self.plugin.broker.accept(service_id, lambda server: add_to_server(self, server))

    def accept_badly(self, service_id: int, context: grpc.ServicerContext) -> None:
        def add_to_server(server: grpc.Server) -> None:
            raise ValueError("no services today")

        self.plugin.broker.accept(service_id, add_to_server)

    def close(self, service_id: int, context: grpc.ServicerContext) -> None:
        self.accepted.pop(service_id).close()

    def descriptors(self, argument: None, context: grpc.ServicerContext) -> int:
        return len(os.listdir("/proc/self/fd"))


def random_chunks(seed: int, size: int) -> Iterator[bytes]:
    """Random bytes, the same for the same seed, up to 1 MB at a time."""
    generator = random.Random(seed)
    for start in range(0, size, 1_000_000):
        yield generator.randbytes(min(1_000_000, size - start))


class Raises:
    def __repr__(self) -> str:
        raise ValueError("no repr")


class RaisesToo(Exception):
    def __str__(self) -> str:
        raise ValueError("no str")


class Streams:
    """Streaming methods, and one that is not; their messages are bytes. /probe.Streams/METHOD."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def count(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    def mirror(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return request

    def sum(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return b"%d" % sum(int(request) for request in requests)

    def chat(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            yield b"you said " + request

    def act(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """One message, then as Probe.act."""
        yield b"begun"
        self.probe.act(json.loads(request), context)

    def hold(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """One message, then nothing until the caller leaves."""
        left = threading.Event()
        context.add_callback(left.set)
        yield b"open"
        left.wait()

    def wait_in_get(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """One message, then nothing, whether the caller is there or not."""
        yield b"open"
        queue.SimpleQueue[None]().get()


def add_to_server(probe: Probe, server: Any) -> None:
    def handler(method: Any) -> Any:
        if inspect.iscoroutinefunction(method):

            async def answer(request: bytes, context: Any) -> bytes:
                return json.dumps(await method(json.loads(request), context)).encode()

            return grpc.unary_unary_rpc_method_handler(answer)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: json.dumps(method(json.loads(request), context)).encode()
        )

    methods = [name for name in dir(probe) if not name.startswith("_") and callable(getattr(probe, name))]
    handlers = {name: handler(getattr(probe, name)) for name in methods}
    services = [("probe.Probe", handlers)]
    if isinstance(probe, ProbeOnAsyncio):
        services += [("probe.Streams", streams(StreamsOnAsyncio(probe))), ("probe.Threads", streams(Streams(probe)))]
    else:
        services += [("probe.Streams", streams(Streams(probe)))]
    # Each app protocol version has its own service, as with go-plugin's VersionedPlugins.
    services.append((f"probe.V{probe.plugin.version}", {"version": handlers["version"]}))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(*service) for service in services])
    if "PROBE_ON_NATIVE" in os.environ:  # as the generated code of grpcio-tools 1.64 or newer does
        for service in services:
            server.add_registered_method_handlers(*service)


class ProbeOnAsyncio(Probe):
    """Some methods are `async def`, the others stay as they are."""

    async def echo(self, argument: Any, context: Any) -> Any:
        return argument

    async def sleep(self, seconds: float, context: Any) -> None:  # type: ignore[override]
        await asyncio.sleep(seconds)

    async def fail(self, message: str, context: Any) -> None:  # type: ignore[override]
        raise ValueError(message)

    async def write_fd(self, argument: list[Any], context: Any) -> None:  # type: ignore[override]
        super().write_fd(argument, context)

    async def act_in_the_loop(self, argument: list[Any], context: Any) -> Any:
        """As act, for an `async def`."""
        return await self.act(argument, context)

    async def block_the_loop(self, seconds: float, context: Any) -> None:
        time.sleep(seconds)  # noqa: ASYNC251

    async def print_at_once(self, argument: list[Any], context: Any) -> None:
        """As print_bytes, but in the event loop, which does nothing else meanwhile."""
        self.print_bytes(argument, context)

    async def log(self, argument: list[Any], context: Any) -> None:  # type: ignore[override]
        super().log(argument, context)

    async def dial(self, argument: list[Any], context: Any) -> str:  # type: ignore[override]
        service_id, text, size = argument
        async with await self.plugin.broker.dial(service_id) as channel:
            answer: bytes = await channel.unary_unary("/any.Service/Method")((text * size).encode(), timeout=20)
        return "the same" if answer == (text * size).encode() else "different"

    async def accept(self, service_id: int, context: Any) -> None:  # type: ignore[override]
        self.accepted[service_id] = await self.plugin.broker.accept(
            service_id, lambda server: add_to_server(self, server)
        )

    async def accept_badly(self, service_id: int, context: Any) -> None:  # type: ignore[override]
        def add_to_server(server: Any) -> None:
            raise ValueError("no services today")

        await self.plugin.broker.accept(service_id, add_to_server)

    async def close(self, service_id: int, context: Any) -> None:  # type: ignore[override]
        await self.accepted.pop(service_id).close()


class StreamsOnAsyncio:
    """Streams, by generators and by the reader and writer API."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    async def count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    async def mirror(self, request: bytes, context: Any) -> bytes:
        return request

    async def sum(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"%d" % sum([int(request) async for request in requests])

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(b"you said " + request)

    async def hold(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"open"
        await asyncio.Event().wait()

    async def hold_or_note(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """As hold; writes a file when the caller leaves."""
        try:
            yield b"open"
            await asyncio.Event().wait()
        finally:
            Path(request.decode()).touch()  # noqa: ASYNC240

    wait_in_get = Streams.wait_in_get

    async def act(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"begun"
        self.probe.act(json.loads(request), context)


def streams(methods: Any) -> dict[str, Any]:
    handlers: dict[str, Any] = {
        "count": grpc.unary_stream_rpc_method_handler(methods.count),
        "mirror": grpc.unary_unary_rpc_method_handler(methods.mirror),
        "sum": grpc.stream_unary_rpc_method_handler(methods.sum),
        "chat": grpc.stream_stream_rpc_method_handler(methods.chat),
        "hold": grpc.unary_stream_rpc_method_handler(methods.hold),
        "act": grpc.unary_stream_rpc_method_handler(methods.act),
        "wait_in_get": grpc.unary_stream_rpc_method_handler(methods.wait_in_get),
    }
    if hasattr(methods, "hold_or_note"):
        handlers["hold_or_note"] = grpc.unary_stream_rpc_method_handler(methods.hold_or_note)
    return handlers


def main() -> None:
    if "PROBE_ON_ASYNCIO" in os.environ:
        asyncio.run(main_on_asyncio())
        return
    plugin = goplugin.Plugin(**arguments())
    library: Any = grpc
    if "PROBE_ON_NATIVE" in os.environ:
        import pygrpc_native as library
    server = library.server(**plugin.server_arguments)
    add_to_server(Probe(plugin), server)
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    print(plugin.listen(server), flush=True)
    if "PROBE_DOES_NOT_WAIT" in os.environ:
        time.sleep(0.3)
        raise RuntimeError("main fails")
    plugin.wait()


async def main_on_asyncio() -> None:
    import goplugin.aio

    plugin = goplugin.aio.Plugin(**arguments())
    server = grpc.aio.server(**plugin.server_arguments)
    add_to_server(ProbeOnAsyncio(plugin), server)
    health_servicer = health.aio.HealthServicer()
    await health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    print(await plugin.listen(server), flush=True)
    if "PROBE_DOES_NOT_WAIT" in os.environ:
        await asyncio.sleep(0.3)
        raise RuntimeError("main fails")
    await plugin.wait()


def arguments() -> dict[str, Any]:
    """The arguments for goplugin.Plugin."""
    versions = [int(text) for text in os.environ.get("PROBE_VERSIONS", "1").split(",")]
    config = goplugin.HandshakeConfig(versions, "PROBE_COOKIE", "probe")
    files = os.environ.get("PROBE_TLS_FILES")
    return {
        "config": config,
        "usage": __doc__,
        "leave_with_host": "PROBE_STAYS" not in os.environ,
        "tls": goplugin.TLSFiles(*files.split(os.pathsep)) if files else None,
    }


if __name__ == "__main__":
    main()
