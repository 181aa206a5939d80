"""The provider on goplugin."""

import goplugin

# isort: split
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from items import Items
from tf.gen import tfplugin_pb2_grpc
from tf.provider import ProviderServicer

HANDSHAKE = goplugin.HandshakeConfig(
    protocol_versions=[6],
    magic_cookie_key="TF_PLUGIN_MAGIC_COOKIE",
    magic_cookie_value="d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2",
)

plugin = goplugin.Plugin(HANDSHAKE)
server = grpc.server(**plugin.server_arguments)
tfplugin_pb2_grpc.add_ProviderServicer_to_server(ProviderServicer(Items()), server)
health_servicer = health.HealthServicer()
health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
print(plugin.listen(server), flush=True)
plugin.wait()
