#!/usr/bin/env python3
"""A provider for Terraform and OpenTofu: it manages notes of an HTTP API. provider.py defines what it does.

Terraform starts this program; README.md shows how Terraform finds it. To debug it:

    python plugin.py --debug example.com/me/notes
"""

import goplugin  # first: from here on only the handshake line reaches the stdout that the host reads

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tf.gen import tfplugin_pb2_grpc

from provider import PROVIDER
from servicer import Servicer

# Terraform's values, the same for all providers. tf speaks protocol 6.
HANDSHAKE = goplugin.HandshakeConfig(
    protocol_versions=[6],
    magic_cookie_key="TF_PLUGIN_MAGIC_COOKIE",
    magic_cookie_value="d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2",
)


def main() -> None:
    """The four steps of the guide."""
    plugin = goplugin.Plugin(HANDSHAKE, usage=__doc__)

    # 1. Implement the service: Servicer does, with the framework tf, and calls the provider. 2. Serve it.
    server = grpc.server(**plugin.server_arguments)
    tfplugin_pb2_grpc.add_ProviderServicer_to_server(Servicer(PROVIDER), server)

    # 3. Add the gRPC health checking service.
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    # 4. Listen, and print the handshake line.
    print(plugin.listen(server), flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
