#!/usr/bin/env python3
"""A go-plugin plugin in Python: the key-value store of go-plugin's guide "Writing Plugins Without Go".

A Go host starts it. To try it with go-plugin's own KV example as the host:

    export KV_PROTO=grpc KV_PLUGIN="python plugin.py"
    go run github.com/hashicorp/go-plugin/examples/grpc@v1.8.0 put hello world
"""

import goplugin  # first: from here on only the handshake line reaches the stdout that the host reads
import os
from pathlib import Path
from urllib.parse import quote

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
import kv_pb2
import kv_pb2_grpc

# Copy these values from your host's source or documentation.
HANDSHAKE = goplugin.HandshakeConfig(protocol_versions=[1], magic_cookie_key="BASIC_PLUGIN", magic_cookie_value="hello")


class KVServicer(kv_pb2_grpc.KVServicer):
    """Keeps each value in the file kv_<key> of the working directory, as go-plugin's own KV plugins do."""

    def Get(self, request: kv_pb2.GetRequest, context: grpc.ServicerContext) -> kv_pb2.GetResponse:
        try:
            with open(self._file_of(request.key), "rb") as file:
                return kv_pb2.GetResponse(value=file.read())
        except FileNotFoundError:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no such key: {request.key!r}")

    def Put(self, request: kv_pb2.PutRequest, context: grpc.ServicerContext) -> kv_pb2.Empty:
        beside = Path(f".kv_{os.urandom(8).hex()}")
        try:
            beside.write_bytes(request.value + b"\n\nWritten from plugin-python")
            beside.replace(self._file_of(request.key))  # atomic: if we are killed before it, the old value stays
        finally:
            beside.unlink(missing_ok=True)
        return kv_pb2.Empty()

    def _file_of(self, key: str) -> str:  # no "/", so it stays in this folder; no ".", so it is never a Python module
        return "kv_" + quote(key, safe="").replace(".", "%2E")


def main() -> None:
    """The four steps of the guide."""
    plugin = goplugin.Plugin(HANDSHAKE, usage=__doc__)
    # 1. Implement the service: KVServicer above. 2. Serve it.
    server = grpc.server(**plugin.server_arguments)
    kv_pb2_grpc.add_KVServicer_to_server(KVServicer(), server)

    # 3. Add the gRPC health checking service. "plugin" is the name that go-plugin asks for.
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    # 4. Print the handshake line. The host reads only this line from our stdout: 1|1|tcp|127.0.0.1:PORT|grpc
    print(plugin.listen(server), flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
