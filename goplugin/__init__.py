"""What go-plugin gives every plugin in Go, for a plugin in Python. Copied as it is; it knows no service of yours.

Import it before anything else: where a host started this process, stdout is the host's from here on.
"""

from goplugin import handshake, lifetime

if handshake.started_by_host():
    lifetime.ignore_interrupts()
    handshake.keep_stdout()

# grpc only comes in here, after the above.
from goplugin.broker import Accepted, Broker
from goplugin.handshake import HandshakeConfig
from goplugin.server import Plugin
from goplugin.workers import Workers

__all__ = ["Accepted", "Broker", "HandshakeConfig", "Plugin", "Workers"]
