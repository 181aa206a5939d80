"""Runs the plugin for a person, under a debugger for example; Grafana finds it, as it does with Grafana's SDK for Go.

The files standalone.txt and pid.txt in the plugin's folder say where it runs. The launcher there reads them.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys

import grpc
from dist import ADDRESS, EXECUTABLE, FOLDER, ID

import goplugin
from plugin import add_to_server


def main() -> None:
    """Serve until Ctrl-C or SIGTERM. Exits if there is no launcher that would find this plugin."""
    if not FOLDER.is_dir():
        sys.exit(f"{FOLDER} does not exist: run `python dist.py launcher` first, and let Grafana use that folder.")
    logging.basicConfig(level=logging.INFO)
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(goplugin.Workers(), options=options)
    add_to_server(server)
    host, _, port = os.environ.get(ADDRESS, "127.0.0.1:0").rpartition(":")
    number = server.add_insecure_port(f"{host}:{port}")
    server.start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    files = {FOLDER / "standalone.txt": f"{host}:{number}", FOLDER / "pid.txt": str(os.getpid())}
    try:
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
        # End the plugin that Grafana runs now. Within a second, Grafana runs the launcher, which reads the files.
        with contextlib.suppress(FileNotFoundError):  # without pkill, the person ends it
            subprocess.run(["pkill", "-f", f"{re.escape(str(FOLDER / EXECUTABLE))}_"], check=False)
        print(f"{ID} serves at {host}:{number}. Ctrl-C ends it.", flush=True)
        server.wait_for_termination()
    except KeyboardInterrupt:
        pass
    finally:
        for path in files:
            path.unlink(missing_ok=True)
        server.stop(None)


if __name__ == "__main__":
    main()
