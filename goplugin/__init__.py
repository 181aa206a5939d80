"""What go-plugin gives every plugin in Go, for plugins in Python. It does not know your service.

Import it before anything else: if a host started this process, stdout belongs to the host from here on.
"""

import gc
import sys

if sys.version_info < (3, 10):
    sys.exit(f"This plugin needs Python 3.10 or newer; this is {sys.version.split()[0]} ({sys.executable}).")

from goplugin import launch, log  # noqa: F401 launch is first: the rest imports grpc
from goplugin.state import STATE

try:
    import grpc  # noqa: F401
except ModuleNotFoundError as missing:
    if not STATE.by_host:  # under a host, log.py adds this for any missing module
        missing.msg += log.ADVICE
    raise

from goplugin.companion.tls import TLSFiles
from goplugin.handshake import HandshakeConfig
from goplugin.log import HclogHandler
from goplugin.plugin import Plugin
from goplugin.services.accepted import Accepted
from goplugin.services.broker import Broker
from goplugin.version import __version__
from goplugin.workers import Workers

if STATE.gc_was_enabled:
    gc.enable()

__all__ = ["Accepted", "Broker", "HandshakeConfig", "HclogHandler", "Plugin", "TLSFiles", "Workers", "__version__"]
