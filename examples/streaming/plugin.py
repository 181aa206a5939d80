#!/usr/bin/env python3
"""The plugin of go-plugin's streaming example: host and plugin send each other a file in small messages.

The example's host starts ./plugin/streamer. README.md shows how.
"""

import goplugin  # first: from here on only the handshake line reaches the stdout that the host reads

import os
import tempfile
import threading
from collections.abc import Iterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import streamer_pb2 as pb
import streamer_pb2_grpc

HANDSHAKE = goplugin.HandshakeConfig(protocol_versions=[1], magic_cookie_key="BASIC_PLUGIN", magic_cookie_value="hello")


class StreamerServicer(streamer_pb2_grpc.StreamerServiceServicer):
    """Reads and writes the file that the host names."""

    def __init__(self) -> None:
        self.settings = pb.Configure.Request()

    def Configure(self, request: pb.Configure.Request, context: grpc.ServicerContext) -> pb.Configure.Response:
        """Set the file's path and the size of the chunks, in bytes."""
        if not request.path or request.chunk_size < 1:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "path must name a file, and chunk_size must be at least 1")
        self.settings = request
        return pb.Configure.Response()

    def Read(self, request: pb.Read.Request, context: grpc.ServicerContext) -> Iterator[pb.Read.ResponseChunk]:
        """Send the file. While the host does not read, grpc pauses this generator; if the host leaves, it closes it."""
        with open(self.path(context), "rb") as file:
            while chunk := file.read(self.settings.chunk_size):
                yield pb.Read.ResponseChunk(read_bytes=chunk)

    def Write(self, requests: Iterator[pb.Write.RequestChunk], context: grpc.ServicerContext) -> pb.Write.Response:
        """Replace the file once all chunks have come. If the host leaves before, the old file stays: see README.md."""
        path = self.path(context)
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(path) or ".", delete=False) as file:
            try:
                for chunk in requests:
                    file.write(chunk.bytes_to_write)
                file.flush()
                if not context.is_active():
                    context.abort(grpc.StatusCode.CANCELLED, "the host has left")
                os.replace(file.name, path)
            except BaseException:
                os.remove(file.name)
                raise
        return pb.Write.Response()

    def Follow(self, request: pb.Follow.Request, context: grpc.ServicerContext) -> Iterator[pb.Follow.ResponseChunk]:
        """Send what others append to the file. That may take hours, so this call must notice when the host leaves."""
        ended = threading.Event()
        if not context.add_callback(ended.set):
            return  # the call has ended already
        with open(self.path(context), "rb") as file:
            file.seek(0, os.SEEK_END)
            context.send_initial_metadata(())  # tells the host that it will miss nothing from now on
            while not ended.wait(0.1):
                while chunk := file.read(self.settings.chunk_size):
                    yield pb.Follow.ResponseChunk(appended_bytes=chunk)

    def path(self, context: grpc.ServicerContext) -> str:
        """Return the file's path; FAILED_PRECONDITION before Configure."""
        if not self.settings.path:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "call Configure first")
        return self.settings.path


def main() -> None:
    """The four steps of the guide."""
    plugin = goplugin.Plugin(HANDSHAKE, usage=__doc__)

    # 1. Implement the service: StreamerServicer above. 2. Serve it.
    server = grpc.server(**plugin.server_arguments)
    streamer_pb2_grpc.add_StreamerServiceServicer_to_server(StreamerServicer(), server)

    # 3. Add the gRPC health checking service.
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    # 4. Listen, and print the handshake line.
    print(plugin.listen(server), flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
