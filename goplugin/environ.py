"""What a go-plugin host told this process in its environment (go-plugin's client.go, Start, sets it)."""

import os

_NAMES = (
    "PLUGIN_MIN_PORT",
    "PLUGIN_MAX_PORT",
    "PLUGIN_PROTOCOL_VERSIONS",
    "PLUGIN_CLIENT_CERT",
    "PLUGIN_MULTIPLEX_GRPC",
    "PLUGIN_UNIX_SOCKET_DIR",
    "PLUGIN_UNIX_SOCKET_GROUP",
)

# Taken out of os.environ: it is said to this process, and a child that imports goplugin must not believe itself the
# plugin. Empty if no host started us: for a person, and for a tool that imports the plugin, nothing happens.
host_environ = {name: os.environ.pop(name) for name in _NAMES if name in os.environ}
