"""The part of Docker's API that Vault uses to run a plugin in a container; unshare makes the containers."""

import contextlib
import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from harness import World

NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
SHARED = "/tmp/go-plugin-container"  # in a container, the folder that the plugin shares with Vault


class Docker(ThreadingHTTPServer):
    """A container has its own namespaces, and no network.

    Its image is the given folders, at the same paths. Of the host's /tmp it sees only these and the folder from Vault.
    """

    def __init__(self, world: World, image: str, folders: list[Path]) -> None:
        super().__init__(("127.0.0.1", 0), Call)
        self.world, self.image, self.folders = world, image, folders
        self.configs: list[dict[str, Any]] = []
        self.containers: list[subprocess.Popen[bytes]] = []

    def run(self, config: dict[str, Any]) -> None:
        (mount,) = config["HostConfig"]["Mounts"]
        folders = {str(folder): str(folder) for folder in self.folders} | {mount["Target"]: mount["Source"]}
        script = (
            "set -e; mount -t tmpfs none /mnt; mkdir /mnt/old; mount --rbind /tmp /mnt/old; mount -t tmpfs none /tmp\n"
        )
        for target, source in folders.items():
            if source.startswith("/tmp/"):
                script += f"mkdir -p {target}; mount --rbind /mnt/old/{source.removeprefix('/tmp/')} {target}\n"
        command = " ".join(config["Entrypoint"] + (config.get("Cmd") or []))
        script += f"umount -l /mnt; mount -t proc none /proc; cd /; exec {command}"
        env = dict(entry.split("=", 1) for entry in config["Env"])
        self.containers.append(self.world.run(*NAMESPACES, "sh", "-c", script, env={"PATH": os.environ["PATH"], **env}))

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Call(BaseHTTPRequestHandler):
    """One call of the API, for example /v1.41/containers/NUMBER/start."""

    server: Docker

    def _answer_call(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        _, _, kind, *rest = f"{self.path.partition('?')[0]}///".split("/")
        name, what = rest[:2]
        if kind == "images":
            self.answer(200, [{"Id": f"sha256:{self.server.image}"}])
        elif name == "create":
            self.server.configs.append(json.loads(body))
            self.answer(201, {"Id": str(len(self.server.configs) - 1), "Warnings": []})
        elif what == "start":
            self.server.run(self.server.configs[int(name)])
            self.answer(204)
        elif what == "logs":
            self.answer(200, None)
            self.log_of(self.server.containers[int(name)])
        elif what == "wait":
            self.answer(200, {"StatusCode": self.server.containers[int(name)].wait()})
        elif what == "stop":
            self.server.containers[int(name)].kill()
            self.server.containers[int(name)].wait()
            self.answer(204)
        else:  # _ping
            self.answer(200, "OK")

    def __getattr__(self, name: str) -> Any:
        if name in ("do_GET", "do_HEAD", "do_POST"):
            return self._answer_call
        raise AttributeError(name)

    def answer(self, code: int, body: Any = None) -> None:
        self.send_response(code)
        self.send_header("Api-Version", "1.41")
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if body is not None and self.command != "HEAD":
            self.wfile.write(json.dumps(body).encode())

    def log_of(self, container: "subprocess.Popen[bytes]") -> None:
        """Send both streams in one; before each piece go the number of its stream and its length."""
        lock = threading.Lock()

        def copy(number: int, stream: Any) -> None:
            with stream:
                while piece := stream.read1():
                    # Docker reads on even when nobody asks for the log any more.
                    with lock, contextlib.suppress(OSError):
                        self.wfile.write(bytes([number, 0, 0, 0]) + len(piece).to_bytes(4, "big") + piece)

        threads = [threading.Thread(target=copy, args=pair) for pair in ((1, container.stdout), (2, container.stderr))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""
