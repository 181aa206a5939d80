#!/usr/bin/env python3
"""A go-plugin plugin in Python: the key-value store of go-plugin's guide "Writing Plugins Without Go".

A Go host runs it; with go-plugin's own KV example as the host:

    export KV_PROTO=grpc KV_PLUGIN="python plugin.py"
    go run github.com/hashicorp/go-plugin/examples/grpc@v1.8.0 put hello world
"""

import goplugin  # first: from here on only the handshake line reaches the stdout that the host reads

import contextlib
import errno
import os
import re
from collections.abc import Iterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import kv_pb2
import kv_pb2_grpc

# The host's: its source or its documentation has them.
HANDSHAKE = goplugin.HandshakeConfig(protocol_versions=[1], magic_cookie_key="BASIC_PLUGIN", magic_cookie_value="hello")


class KVServicer(kv_pb2_grpc.KVServicer):
    """Keeps each value in the file kv_<key> of the working directory, as go-plugin's own KV plugins do."""

    def Get(self, request: kv_pb2.GetRequest, context: grpc.ServicerContext) -> kv_pb2.GetResponse:
        """The key's value; NOT_FOUND if it has none."""
        with os_errors_as_status(context, request.key):
            try:
                with open(file_of(request.key), "rb") as file:
                    return kv_pb2.GetResponse(value=file.read())
            except FileNotFoundError:
                context.abort(grpc.StatusCode.NOT_FOUND, f"no such key: {request.key!r}")

    def Put(self, request: kv_pb2.PutRequest, context: grpc.ServicerContext) -> kv_pb2.Empty:
        """Set the key's value, at once or not at all."""
        with os_errors_as_status(context, request.key):
            path = file_of(request.key)
            # Written beside and renamed: whoever reads, or kills us midway, finds the old value or the new one.
            beside = f".kv_{os.urandom(8).hex()}"
            try:
                with open(beside, "xb") as file:
                    file.write(request.value)
                    file.write(b"\n\nWritten from plugin-python")
                os.replace(beside, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(beside)
            return kv_pb2.Empty()


def file_of(key: str) -> bytes:
    """The file's name for a key: kv_<key>, with what would lead out of the folder, or to our own code, as %XX."""
    if not key:
        raise OSError(errno.EINVAL, "the key is empty")
    name = re.sub(r"[%/\\\x00-\x1f\x7f-\x9f]", lambda match: "".join(f"%{b:02X}" for b in match[0].encode()), key)
    # kv_pb2.py and kv_pb2_grpc.py stand in this folder, and Python would prefer a kv_pb2.so to them.
    return b"kv_" + re.sub(r"(?i)^(pb2(?:_grpc)?)\.", r"\1%2E", name).encode()


@contextlib.contextmanager
def os_errors_as_status(context: grpc.ServicerContext, key: str) -> Iterator[None]:
    """Tell the caller what went wrong in gRPC's terms; anything unforeseen is UNKNOWN, and logged, by grpc itself."""
    try:
        yield
    except OSError as error:
        code = {
            errno.EINVAL: grpc.StatusCode.INVALID_ARGUMENT,
            errno.ENAMETOOLONG: grpc.StatusCode.INVALID_ARGUMENT,
            errno.EACCES: grpc.StatusCode.PERMISSION_DENIED,
            errno.EPERM: grpc.StatusCode.PERMISSION_DENIED,
            errno.EROFS: grpc.StatusCode.PERMISSION_DENIED,
            errno.ENOSPC: grpc.StatusCode.RESOURCE_EXHAUSTED,
            errno.EDQUOT: grpc.StatusCode.RESOURCE_EXHAUSTED,
            errno.EFBIG: grpc.StatusCode.RESOURCE_EXHAUSTED,
        }.get(error.errno or 0, grpc.StatusCode.INTERNAL)
        context.abort(code, f"key {key[:300]!r}: {error.strerror}")


def main() -> None:
    """The four steps of the guide."""
    plugin = goplugin.Plugin(HANDSHAKE, usage=__doc__)
    server = grpc.server(plugin.workers, options=plugin.options)

    # 1. Implement the service: KVServicer above. 2. Serve it.
    kv_pb2_grpc.add_KVServicer_to_server(KVServicer(), server)

    # 3. Add the gRPC health checking service. "plugin" is the name that go-plugin asks for.
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    # What go-plugin gives every plugin in Go: Shutdown, stdio, broker, reflection.
    plugin.add_to_server(server)

    # 4. Listen, and output the handshake line, all that the host reads from our stdout: 1|1|tcp|127.0.0.1:PORT|grpc
    #    CORE-PROTOCOL-VERSION | APP-PROTOCOL-VERSION | NETWORK-TYPE | NETWORK-ADDR | PROTOCOL
    print(plugin.listen(server), file=plugin.stdout, flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
