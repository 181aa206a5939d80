"""What go-plugin gives every plugin in Go, for a plugin in Python. Copied as it is; it knows no service of yours.

Import it before anything else: where a host started this process, stdout is the host's from here on.
"""

import gc
import os
import signal
import sys

from goplugin.environ import host_environ

if host_environ:
    # Ctrl-C reaches host and plugin alike, and is the host's to answer. Not SIG_IGN, which children would inherit.
    signal.signal(signal.SIGINT, lambda signum, frame: None)
    # Looking for garbage in what is being imported would take a twentieth of the start, and there is none.
    gc.disable()

if sys.version_info < (3, 10):
    sys.exit("This plugin needs Python 3.10 or newer.")

from goplugin import outputs, terminator

if host_environ:
    outputs.take_stdout()
terminator.start()  # makes the certificate while we import the rest

# The plugin's code may fork without further ado; grpc's own support for that can crash the child, and logs each one.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
try:
    import grpc as _grpc  # noqa: F401
except ModuleNotFoundError as error:
    sys.exit(f"{error}: this plugin needs the packages of requirements.txt, see README.md")

from goplugin.automtls import TLSFiles
from goplugin.broker import Accepted, Broker
from goplugin.handshake import HandshakeConfig
from goplugin.log import HclogHandler
from goplugin.server import Plugin
from goplugin.workers import Workers

if host_environ:
    gc.enable()

__all__ = ["Accepted", "Broker", "HandshakeConfig", "HclogHandler", "Plugin", "TLSFiles", "Workers"]
