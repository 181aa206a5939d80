"""The state of this process: one object, made when goplugin is imported."""

import gc
import os
import sys
from typing import Any

from goplugin import environment
from goplugin.environment import Environment
from goplugin.standard_streams import StandardStreams

DEBUG = "--debug"  # with this argument, a person starts the plugin and hosts attach to it


class State:
    """A plugin that a host started, one that a person started with --debug, a child of a plugin, or another process.

    variables: the host's environment variables; `os.environ` no longer has them. settings: the same, parsed.
    by_host: a host started this process. A person may set variables too, such as a version for --debug; but every host
        sets PLUGIN_MIN_PORT.
    pid, parent: the pids of this process and of the one that started it. A child by fork keeps the plugin's.
    companion: the process beside this one. None with --debug, except with tls=, and in other processes.
    plugin: the one goplugin.Plugin of this process.
    failed: an exception or sys.exit("text") ended main(), and was logged.
    grpc_came_first: grpc was imported before goplugin. gc_was_enabled: whether it was, before goplugin was imported.
    """

    def __init__(self) -> None:
        self.variables = environment.take(os.environ)
        self.by_host = "PLUGIN_MIN_PORT" in self.variables or (bool(self.variables) and DEBUG not in sys.argv)
        self.settings = Environment()
        self.pid, self.parent = os.getpid(), os.getppid()
        self.standard_streams = StandardStreams()
        self.companion: Any = None
        self.plugin: Any = None
        self.failed = False
        self.grpc_came_first = self.by_host and "grpc" in sys.modules
        self.gc_was_enabled = gc.isenabled()

    def is_child(self) -> bool:
        """Whether this is a child of the plugin, made by fork."""
        return os.getpid() != self.pid


STATE = State()
