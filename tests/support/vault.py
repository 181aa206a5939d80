"""Vault, running, with the plugins of examples/vault in its folder."""

import http.client
import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from harness import World, eventually

from examples import Example


class VaultError(Exception):
    """Vault answered with this error."""


def free_address() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Vault:
    """A Vault server on a free port and the `vault` command, with a copy of the example in the world's folder."""

    def __init__(self, world: World, example: Example, host: str) -> None:
        self.world, self.example, self.token = world, example, "root"
        self.process: subprocess.Popen[bytes] | None = None
        for source in example.folder.glob("*.py"):
            shutil.copy(source, world.folder)
        for name in (".venv", "goplugin", "sdk"):
            (world.folder / name).symlink_to(example.folder / name)
        world.env.pop("PYTHONPATH", None)
        world.env["PATH"] = f"{Path(host).parent}:{world.env['PATH']}"
        world.env["HOME"] = str(world.folder)
        self.address, self.cluster = free_address(), free_address()
        world.env |= {"VAULT_ADDR": f"http://{self.address}", "VAULT_TOKEN": self.token}
        _, self.readme, *_ = example.console_blocks()
        lines = example.typed(self.readme).splitlines()
        server = next(number for number, line in enumerate(lines) if "vault server" in line)
        self("\n".join(lines[:server]))  # makes the launcher
        self.development = lines[server].removesuffix(" &")
        self.rest = "\n".join(line for line in lines[server + 1 :] if not line.startswith("export"))

    def start(self, command: str) -> None:
        """Run the server."""
        self.process = self.world.run("sh", "-c", f"exec {command}")
        assert eventually(self.answers), self.log

    def start_development(self) -> None:
        """Run it with README's command, which keeps everything in memory."""
        self.start(self.development.replace("vault server", f"vault server -dev-listen-address={self.address}"))

    def start_production(self) -> None:
        """Run it unsealed, with storage in files, which a second start uses again."""
        storage = self.world.folder / "storage"
        again = storage.exists()
        storage.mkdir(exist_ok=True)
        settings = {
            "storage": {"raft": {"path": str(storage), "node_id": "one"}},
            "listener": {"tcp": {"address": self.address, "cluster_address": self.cluster, "tls_disable": True}},
            "cluster_addr": f"https://{self.cluster}",
            "plugin_directory": str(self.world.folder / "plugins"),
            "api_addr": f"http://{self.address}",
            "disable_mlock": True,
        }
        (self.world.folder / "vault.json").write_text(json.dumps(settings))
        self.start("vault server -config=vault.json -log-level=debug >>log 2>&1")
        if not again:
            made = self.ask("PUT", "sys/init", secret_shares=1, secret_threshold=1)
            self.key, self.token = made["keys"][0], made["root_token"]
            self.world.env["VAULT_TOKEN"] = self.token
        self.unseal()

    def close(self) -> None:
        """End Vault by SIGTERM; its plugins end with it."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)

    def unseal(self) -> None:
        self.ask("PUT", "sys/unseal", key=self.key)
        assert eventually(self.active), self.log

    def answers(self) -> bool:
        try:
            return "sealed" in self.ask("GET", "sys/seal-status")
        except OSError:
            return False

    def active(self) -> bool:
        try:
            return bool(self.ask("GET", "sys/health"))
        except VaultError:
            return False

    def register(self, *mounts: str) -> None:
        """Register the plugins as README does, and enable engines at these paths, each with its own role and file."""
        register = [line for line in self.rest.splitlines() if line.startswith(("sum=", "vault plugin register"))]
        self("\n".join(register))
        for mount in mounts:
            self.enable(mount)

    def enable(self, mount: str) -> None:
        self(f"vault secrets enable -path={mount} accounts")
        self.ask("PUT", f"{mount}/config", file=str(self.world.folder / mount))
        self.ask("PUT", f"{mount}/role/reader", ttl="1h", max_ttl="24h")

    def issue(self, mount: str = "web", role: str = "reader") -> tuple[str, str]:
        """Have Vault issue an account; return its name and the id of its lease."""
        answer = self.ask("GET", f"{mount}/creds/{role}")
        return answer["data"]["username"], answer["lease_id"]

    def accounts(self, mount: str = "web") -> list[str]:
        """The accounts that the web server knows."""
        file = self.world.folder / mount
        return [line.partition(":")[0] for line in file.read_text().splitlines()] if file.exists() else []

    def __call__(self, command: str, code: int = 0) -> str:
        """Run a command in a shell and return what it prints."""
        process = self.world.run("sh", "-e", "-c", command)
        out, err = process.communicate()
        assert process.returncode == code, f"{command}\n{out.decode()}\n{err.decode()}"
        return out.decode() + err.decode()

    def ask(self, method: str, path: str, **data: Any) -> Any:
        """Call Vault's API. VaultError if it answers with an error."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            connection.request(method, f"/v1/{path}", json.dumps(data), {"X-Vault-Token": self.token})
            answer = connection.getresponse()
            said = answer.read().decode()
        finally:
            connection.close()
        if answer.status >= 400:
            raise VaultError(f"{answer.status}: {said}")
        return json.loads(said or "null")

    @property
    def log(self) -> str:
        return (self.world.folder / "log").read_text()
