#!/usr/bin/env python3
"""A go-plugin plugin in Python with asyncio: the key-value store, with `async def` handlers.

A Go host starts it. To try it with go-plugin's own KV example as the host:

    export KV_PROTO=grpc KV_PLUGIN="python plugin.py"
    go run github.com/hashicorp/go-plugin/examples/grpc@v1.8.0 put hello world
"""

import goplugin.aio  # first: from here on only the handshake line reaches the stdout that the host reads

import asyncio
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import kv_pb2
import kv_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

# Copy these values from your host's source or documentation.
HANDSHAKE = goplugin.HandshakeConfig(protocol_versions=[1], magic_cookie_key="BASIC_PLUGIN", magic_cookie_value="hello")


class KVServicer(kv_pb2_grpc.KVServicer):
    """Keeps each value in the file kv_<key> of the working directory, as go-plugin's own KV plugins do.

    While a handler awaits, other handlers run. Blocking calls, such as these on files, run in a thread. A handler may
    also be `def`: then all of it runs in a thread.
    """

    async def Get(self, request: kv_pb2.GetRequest, context: Context) -> kv_pb2.GetResponse:
        """Return the key's value; NOT_FOUND if it has none."""
        try:
            return kv_pb2.GetResponse(value=await asyncio.to_thread(file_of(request.key).read_bytes))
        except FileNotFoundError:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no such key: {request.key!r}")

    async def Put(self, request: kv_pb2.PutRequest, context: Context) -> kv_pb2.Empty:
        """Set the key's value."""
        await asyncio.to_thread(write, file_of(request.key), request.value + b"\n\nWritten from plugin-python")
        return kv_pb2.Empty()


def file_of(key: str) -> Path:
    """Return the key's file. Its name has no "/", so it stays in this folder, and no ".", so it is never a module."""
    return Path("kv_" + quote(key, safe="").replace(".", "%2E"))


def write(path: Path, value: bytes) -> None:
    """Replace the file atomically: if we are killed midway, the old value stays."""
    beside = Path(f".kv_{os.urandom(8).hex()}")
    try:
        beside.write_bytes(value)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


async def serve() -> None:
    """The four steps of the guide."""
    plugin = goplugin.aio.Plugin(HANDSHAKE, usage=__doc__)

    # 1. Implement the service: KVServicer above. 2. Serve it.
    server = grpc.aio.server(**plugin.server_arguments)
    kv_pb2_grpc.add_KVServicer_to_server(KVServicer(), server)

    # 3. Add the gRPC health checking service. "plugin" is the name that go-plugin asks for.
    health_servicer = health.aio.HealthServicer()
    await health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    # 4. Print the handshake line. The host reads only this line from our stdout: 1|1|tcp|127.0.0.1:PORT|grpc
    print(await plugin.listen(server), flush=True)
    await plugin.wait()


def main() -> None:
    """Run the plugin. It is a plain function because installed programs call one."""
    asyncio.run(serve())


if __name__ == "__main__":
    main()
