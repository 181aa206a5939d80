"""A plugin whose service does what a test asks for: it prints, logs, raises, waits, starts children.

Its messages are JSON, so that it needs no .proto: /probe.Probe/METHOD.
"""

import goplugin

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

# What breaks other plugins: output while the script is still being imported, by every way out.
if "PROBE_NOISY" in os.environ:
    print("stray print at import")
    os.write(1, b"stray write to file descriptor 1\n")
    ctypes.CDLL(None).puts(b"stray line of a C library")
    ctypes.CDLL(None).fflush(None)
    subprocess.run(["echo", "stray line of a child"], check=True)
    os.system("echo stray line of a shell")
    print("1|1|tcp|127.0.0.1:1|grpc")
    print("x" * 100_000)

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


class Probe:
    """The methods; each takes and returns what JSON can express."""

    def __init__(self, plugin: goplugin.Plugin) -> None:
        self.plugin = plugin

    def echo(self, argument: Any, context: grpc.ServicerContext) -> Any:
        return argument

    def version(self, argument: Any, context: grpc.ServicerContext) -> int:
        return self.plugin.version

    def sleep(self, seconds: float, context: grpc.ServicerContext) -> None:
        time.sleep(seconds)

    def sleep_then_write(self, argument: list[Any], context: grpc.ServicerContext) -> None:
        seconds, path = argument
        time.sleep(seconds)
        with open(path, "w") as file:
            file.write("done")

    def fail(self, message: str, context: grpc.ServicerContext) -> None:
        raise ValueError(message)

    def fail_in_thread(self, message: str, context: grpc.ServicerContext) -> None:
        thread = threading.Thread(target=self.fail, args=(message, context), name="of-the-plugin")
        thread.start()
        thread.join()

    def hold_thread(self, argument: None, context: grpc.ServicerContext) -> None:
        """Start a thread that Python waits for at its end, for an hour."""
        threading.Thread(target=time.sleep, args=(3600,)).start()

    def write_fd(self, argument: list[Any], context: grpc.ServicerContext) -> None:
        fd, text, times = argument
        for _ in range(times):
            os.write(fd, text.encode())

    def child(self, argument: list[str], context: grpc.ServicerContext) -> list[int]:
        """Start a child that outlives us, its stderr closed as README advises; returns its open descriptors."""
        process = subprocess.Popen(
            [sys.executable, "-c", "import os, time; print(*os.listdir('/proc/self/fd'), flush=True); time.sleep(8)"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
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

    def signal_of_child(self, argument: None, context: grpc.ServicerContext) -> int:
        """The exit code of a child that sends itself SIGINT."""
        code = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
        return subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL).returncode


def add_to_server(probe: Probe, server: grpc.Server) -> None:
    def handler(method: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: json.dumps(method(json.loads(request), context)).encode()
        )

    methods = [name for name in vars(Probe) if not name.startswith("_")]
    handlers = {name: handler(getattr(probe, name)) for name in methods}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("probe.Probe", handlers)])


def main() -> None:
    versions = [int(text) for text in os.environ.get("PROBE_VERSIONS", "1").split(",")]
    config = goplugin.HandshakeConfig(versions, "PROBE_COOKIE", "probe")
    plugin = goplugin.Plugin(config, usage=__doc__, leave_with_host="PROBE_STAYS" not in os.environ)
    server = grpc.server(plugin.workers, options=plugin.options)
    add_to_server(Probe(plugin), server)
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    plugin.add_to_server(server)
    print(plugin.listen(server), file=plugin.stdout, flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
