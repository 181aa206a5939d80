#!/usr/bin/env python3
"""A plugin for old and new hosts: the key-value store in two app protocol versions.

The host of go-plugin's negotiated example knows version 3, and starts ./kv-plugin. README.md shows how.
"""

import goplugin  # first: from here on only the handshake line reaches the stdout that the host reads

from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import kv_pb2
import kv_pb2_grpc

# The host says which versions it knows. Both use the highest version that both know.
HANDSHAKE = goplugin.HandshakeConfig(
    protocol_versions=[4, 3], magic_cookie_key="BASIC_PLUGIN", magic_cookie_value="hello"
)


class KVServicer3(kv_pb2_grpc.KVServicer):
    """Version 3, which old hosts know. Each value is in the file kv_<key>; a key is a name."""

    def Get(self, request: kv_pb2.GetRequest, context: grpc.ServicerContext) -> kv_pb2.GetResponse:
        """Return the key's value, and a line that says who read it."""
        return kv_pb2.GetResponse(value=self.read(request.key, context) + b"Read by plugin version 3\n")

    def Put(self, request: kv_pb2.PutRequest, context: grpc.ServicerContext) -> kv_pb2.Empty:
        """Set the key's value, with a line that says who wrote it."""
        file_of(request.key, context).write_bytes(request.value + b"\n\nWritten from plugin version 3\n")
        return kv_pb2.Empty()

    def read(self, key: str, context: grpc.ServicerContext) -> bytes:
        """Return the file's content; NOT_FOUND if there is none."""
        try:
            return file_of(key, context).read_bytes()
        except FileNotFoundError:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no such key: {key!r}")


class KVServicer4(KVServicer3):
    """Version 4, for new hosts. It adds nothing to the value."""

    def Get(self, request: kv_pb2.GetRequest, context: grpc.ServicerContext) -> kv_pb2.GetResponse:
        """Return the key's value."""
        return kv_pb2.GetResponse(value=self.read(request.key, context))

    def Put(self, request: kv_pb2.PutRequest, context: grpc.ServicerContext) -> kv_pb2.Empty:
        """Set the key's value."""
        file_of(request.key, context).write_bytes(request.value)
        return kv_pb2.Empty()


SERVICERS = {3: KVServicer3, 4: KVServicer4}


def file_of(key: str, context: grpc.ServicerContext) -> Path:
    """Return the key's file; INVALID_ARGUMENT unless the key is letters, digits and underscores."""
    if not key.isidentifier():
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a key is letters, digits and underscores, not {key!r}")
    return Path(f"kv_{key}")


def main() -> None:
    """The four steps of the guide."""
    plugin = goplugin.Plugin(HANDSHAKE, usage=__doc__)

    # 1. Implement the service: a servicer for each version, above. 2. Serve the one for the version in use.
    server = grpc.server(**plugin.server_arguments)
    kv_pb2_grpc.add_KVServicer_to_server(SERVICERS[plugin.version](), server)

    # 3. Add the gRPC health checking service.
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    # 4. Listen, and print the handshake line. Its second field is the version.
    print(plugin.listen(server), flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
