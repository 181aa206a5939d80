#!/usr/bin/env python3
"""A secrets engine for Vault, and with the argument `auth` an auth method. Vault starts it; README.md shows how."""

import goplugin  # first: from here on only the handshake line reaches the stdout that the host reads

import sys

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from auth import People
from backend import add_to_server
from engine import Accounts

# Vault's, from plugin/serve.go of its SDK. 3 and 4 are for plugins without AutoMTLS.
HANDSHAKE = goplugin.HandshakeConfig(
    protocol_versions=[5],
    magic_cookie_key="VAULT_BACKEND_PLUGIN",
    magic_cookie_value="6669da05-b1c8-4f49-97d9-c8e5bed98e20",
)

VERSION = "v0.1.0"


def main() -> None:
    """The four steps of the guide."""
    plugin = goplugin.Plugin(HANDSHAKE, usage=__doc__)

    # 1. Implement the service: in engine.py and auth.py. 2. Serve it.
    server = grpc.server(**plugin.server_arguments)
    backend = People() if "auth" in sys.argv[1:] else Accounts()
    add_to_server(server, backend, plugin.broker, VERSION)

    # 3. Add the gRPC health checking service.
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    # 4. Listen, and print the handshake line.
    print(plugin.listen(server), flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
