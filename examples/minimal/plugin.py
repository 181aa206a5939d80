#!/usr/bin/env python3
"""The key-value plugin of go-plugin's guide in one file, without goplugin: only what a host needs.

export KV_PROTO=grpc KV_PLUGIN="exec python plugin.py"
go run github.com/hashicorp/go-plugin/examples/grpc@v1.8.0 put hello world
"""

import os
import signal
import sys
import threading
from concurrent import futures
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import kv_pb2
import kv_pb2_grpc


class KVServicer(kv_pb2_grpc.KVServicer):
    """Keeps each value in the file kv_<key>."""

    def Get(self, request: kv_pb2.GetRequest, context: grpc.ServicerContext) -> kv_pb2.GetResponse:
        """Return the key's value. If this raises an exception, the host gets its text with the code UNKNOWN."""
        return kv_pb2.GetResponse(value=Path(f"kv_{quote(request.key, safe='')}").read_bytes())

    def Put(self, request: kv_pb2.PutRequest, context: grpc.ServicerContext) -> kv_pb2.Empty:
        """Set the key's value."""
        Path(f"kv_{quote(request.key, safe='')}").write_bytes(request.value + b"\n\nWritten from plugin-python")
        return kv_pb2.Empty()


def main() -> None:
    """The four steps of the guide, and how a plugin's life begins and ends."""
    # The host sets the magic cookie. Without it, a person has started the plugin by mistake.
    if os.environ.get("BASIC_PLUGIN") != "hello":
        sys.exit(f"This is a go-plugin plugin; its host starts it.\n\n{__doc__}")
    # Ctrl-C in a terminal reaches host and plugin alike. The host decides when the plugin ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    # 1. and 2. Without so_reuseport=0, two plugins could bind the same port, and get each other's calls.
    server = grpc.server(futures.ThreadPoolExecutor(10), options=[("grpc.so_reuseport", 0)])
    kv_pb2_grpc.add_KVServicer_to_server(KVServicer(), server)

    # 3. The host's Ping asks the health service for "plugin".
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    # The host's Kill() calls plugin.GRPCController/Shutdown, and kills the process if it still runs 2 s later.
    # Request and response are empty messages, which have no bytes. So this needs no .proto file.
    stop = threading.Event()
    shutdown: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: stop.set() or b"")  # type: ignore[func-returns-value]
    service = grpc.method_handlers_generic_handler("plugin.GRPCController", {"Shutdown": shutdown})
    server.add_generic_rpc_handlers((service,))

    # 4. Port 0: the system chooses a free port. Serve before you print the line: the host calls once it has read it.
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"1|1|tcp|127.0.0.1:{port}|grpc", flush=True)  # core version, app version, network, address, protocol
    stop.wait()
    server.stop(1.5).wait()  # calls in flight, such as Shutdown itself, have 1.5 s to finish


if __name__ == "__main__":
    main()
