"""A plugin that a test starts with a host's variables, and whose pipes the test reads itself."""

import signal
import subprocess
import sys
from pathlib import Path

from harness import PATIENCE, ROOT, World

HOSTS_VARIABLES = {
    "BASIC_PLUGIN": "hello",
    "PLUGIN_MIN_PORT": "10000",
    "PLUGIN_MAX_PORT": "25000",
    "PLUGIN_PROTOCOL_VERSIONS": "1",
}


def run(world: World, *, script: Path = ROOT / "plugin.py", **variables: str) -> "subprocess.Popen[bytes]":
    """Start the plugin with a host's variables and `variables`; the test reads its pipes."""
    return world.run(sys.executable, script, env={**world.env, **HOSTS_VARIABLES, **variables})


def line(process: "subprocess.Popen[bytes]") -> str:
    assert process.stdout
    return process.stdout.readline().decode()


def end(process: "subprocess.Popen[bytes]") -> tuple[int, str, str]:
    """End it; returns exit code, rest of stdout, stderr. On Windows this kills it, and 0 means that it still ran."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode - (sys.platform == "win32"), out.decode(), err.decode()
