"""A host for tests of plugins, in Python: no Go is needed. Mirrors go-plugin's client.go and grpc_client.go.

    with goplugin.testing.start([sys.executable, "plugin.py"], HANDSHAKE) as plugin:
        your_pb2_grpc.YourStub(plugin.channel).Method(your_pb2.Request())
    assert plugin.exit_code == 0

It is for tests. It does not watch over a plugin in use: it neither restarts it nor limits what it may do.
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
    """Start a plugin, in any language, and connect to it. End it by a `with`, or by its `kill()`.

    A plugin that nobody has ended is killed when this process exits.
    handshake: the plugin's; the host offers its protocol_versions.
    env: replaces the whole environment; to add to it, pass {**os.environ, "NAME": "value"}.
    timeout: seconds until the handshake line, and for the connection.
    check_health: False for a plugin that has no health service, without which hosts cannot ping it.
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
    """Connect to a plugin that runs already: with --debug it prints such JSON. The plugin stays at the end.

    timeout: seconds for the connection. PluginError if the plugin has ended, or does not answer.
    """
    (config,) = json.loads(reattach_config).values()
    address = Address(config["Addr"]["Network"], config["Addr"]["String"])
    try:
        address.connect(timeout).close()  # as client.go does; grpc would dial again and again
    except OSError as error:
        raise PluginError(
            f"Reattachment process not found: nobody listens at {address.address} ({error});"
            " start the plugin again with --debug, and attach by the line that it prints"
        ) from None
    client = Client()
    try:
        client.connect(Handshake(config["ProtocolVersion"], address, b""), timeout, check_health=True)
    except BaseException:
        client.close()
        raise
    return client
