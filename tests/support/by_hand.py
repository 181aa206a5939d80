"""A plugin with a host's variables, but with the test at the other end of its pipes."""

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
    """The plugin with a host's variables, and others, but with the test at the other end of its pipes."""
    return world.run(sys.executable, script, env={**world.env, **HOSTS_VARIABLES, **variables})


def line(process: "subprocess.Popen[bytes]") -> str:
    assert process.stdout
    return process.stdout.readline().decode()


def end(process: "subprocess.Popen[bytes]") -> tuple[int, str, str]:
    """Ask it to leave: exit code, rest of stdout, stderr. On Windows it is ended, and 0 means that it still ran."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode - (sys.platform == "win32"), out.decode(), err.decode()
