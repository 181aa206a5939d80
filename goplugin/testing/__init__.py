"""A host in Python, to test plugins without Go. Mirrors go-plugin's client.go and grpc_client.go.

    with goplugin.testing.start([sys.executable, "plugin.py"], HANDSHAKE) as plugin:
        your_pb2_grpc.YourStub(plugin.channel).Method(your_pb2.Request())
    assert plugin.exit_code == 0

It is for tests, not for plugins in use: it neither restarts a plugin nor limits what it may do.
"""

import json
import os
from collections.abc import Mapping, Sequence

from goplugin import launch
from goplugin.address import Address
from goplugin.handshake import HandshakeConfig
from goplugin.testing.client import Client, PluginError
from goplugin.testing.line import Handshake, parse_handshake

__all__ = ["Client", "Handshake", "PluginError", "attach", "parse_handshake", "start"]

launch.release()  # this process is a host


def start(
    command: Sequence[str | os.PathLike[str]],
    handshake: HandshakeConfig,
    *,
    auto_mtls: bool = False,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    check_health: bool = True,
) -> Client:
    """Start a plugin, in any language, and connect to it. End it with a `with`, or with its `kill()`.

    If nobody ends the plugin, it is killed when this process exits.
    handshake: the plugin's. The host offers its protocol_versions.
    env: replaces the whole environment. To add to it, pass {**os.environ, "NAME": "value"}.
    timeout: seconds until the handshake line, and again for the connection.
    check_health: False for a plugin without a health service. Hosts cannot ping such a plugin.
    PluginError if the plugin does not start as a host expects. OSError if the command cannot be run.
    """
    client = Client(auto_mtls=auto_mtls)
    try:
        client.start(command, handshake, cwd, os.environ if env is None else env, timeout, check_health)
    except BaseException:
        client.kill()
        raise
    return client


def attach(reattach_config: str, *, timeout: float = 60.0) -> Client:
    """Connect to a plugin that runs already. The plugin runs on when the client is closed.

    reattach_config: the JSON that a plugin prints with --debug.
    timeout: seconds for the connection. PluginError if the plugin has ended, or does not answer.
    """
    (config,) = json.loads(reattach_config).values()
    address = Address(config["Addr"]["Network"], config["Addr"]["String"])
    try:
        address.connect(timeout).close()  # as client.go does; grpc would dial repeatedly
    except OSError as error:
        raise PluginError(
            f"Reattachment process not found: nobody listens at {address.address} ({error});"
            " start the plugin again with --debug, and attach with the line that it prints"
        ) from None
    client = Client()
    try:
        client.connect(Handshake(config["ProtocolVersion"], address, b""), timeout, check_health=True)
    except BaseException:
        client.close()
        raise
    return client
