"""A plugin that a person starts, under a debugger say, and Grafana finds: as with Grafana's SDK for Go.

Two files in the plugin's folder say where it is, standalone.txt and pid.txt. The launcher there reads them.
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
    """Serve until Ctrl-C or SIGTERM. Exits if there is no launcher to find this."""
    if not FOLDER.is_dir():
        sys.exit(f"{FOLDER} is not there: run `python dist.py launcher` first, and let Grafana use that.")
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
        # End what Grafana runs now. Within a second it runs the launcher again, which reads the files.
        with contextlib.suppress(FileNotFoundError):  # without pkill, a person does it
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
