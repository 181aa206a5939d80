"""The secrets engine of examples/vault, under Vault: `make hosts HOSTS=vault` builds it."""

import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import World, eventually

from examples import Example, programs, writer_of

pytestmark = [
    Example.group("vault"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("host", programs("vault")),
]


class Vault:
    """A development server with the plugin in its folder, and the `vault` command."""

    def __init__(self, world: World, example: Example, host: str) -> None:
        self.world, self.example = world, example
        for name in ("engine_plugin.py", ".venv", "goplugin", "sdk"):
            (world.folder / name).symlink_to(example.folder / name)
        _, with_host, *_ = example.console_blocks()
        self.readme = with_host
        lines = example.typed(with_host).splitlines()
        start = next(number for number, line in enumerate(lines) if "vault server" in line)
        world.env["PATH"] = f"{Path(host).parent}:{world.env['PATH']}"
        world.env["HOME"] = str(world.folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        # README's own lines, with a port that is free here; `exec`, so that the process is Vault's.
        address = f"127.0.0.1:{self.port}"
        server = (
            lines[start].removesuffix(" &").replace("vault server", f"exec vault server -dev-listen-address={address}")
        )
        world.env |= {"VAULT_ADDR": f"http://{address}", "VAULT_TOKEN": "root"}
        example.run(world, "\n".join(lines[:start]), cwd=world.folder)
        self.process = world.run("sh", "-c", server)
        self.rest = "\n".join(line for line in lines[start + 1 :] if not line.startswith("export"))

    def __call__(self, command: str, code: int = 0) -> str:
        process = self.world.run("sh", "-e", "-c", command)
        out, err = process.communicate()
        assert process.returncode == code, f"{command}\n{out.decode()}\n{err.decode()}"
        return out.decode() + err.decode()

    @property
    def log(self) -> str:
        return (self.world.folder / "log").read_text()


@pytest.fixture
def vault(world: World, copies: Callable[[str], Example], host: str) -> Iterator[Vault]:
    example = copies("vault")
    example.run(world, "make protos")
    vault = Vault(world, example, host)
    yield vault
    if vault.process.poll() is None:
        vault.process.terminate()
        vault.process.wait(20)
    assert world.gone()
    for name in ("status", ".vault-token"):
        (world.folder / name).unlink(missing_ok=True)


def test_what_the_readme_shows(world: World, vault: Vault, host: str) -> None:
    assert vault(vault.rest).split() == vault.example.shown(vault.readme).split()


def test_mounts_share_a_process_and_nothing_else(world: World, vault: Vault, host: str) -> None:
    vault(vault.rest)
    vault("vault secrets enable -path=two notes")
    pids = {process.pid for process in world.plugins()}
    assert len(pids) == 1
    assert "No value found" in vault("vault read two/hello", 2)
    vault("vault write two/hello text=two")
    assert vault("vault read -field=text notes/hello").strip() == "world"
    assert vault("vault list -format=json two") == '[\n  "hello"\n]\n'
    assert "a note needs a text: vault write two/hello text=..." in vault("vault write two/hello x=y", 2)
    vault("vault delete two/hello")
    vault("vault secrets disable two")
    assert vault("vault read -field=text notes/hello").strip() == "world"
    assert re.search(r"\[INFO\] +secrets.notes.*stored: .*path=hello", vault.log), vault.log
    assert not re.search(r"\[(ERROR|WARN)\] +secrets.notes", vault.log), vault.log


def test_reload_and_checksum(world: World, vault: Vault, host: str) -> None:
    vault(vault.rest)
    (before,) = (process.pid for process in world.plugins())
    vault("vault plugin reload -plugin=notes")
    assert vault("vault read -field=text notes/hello").strip() == "world"
    (after,) = (process.pid for process in world.plugins())
    assert after != before
    assert eventually(lambda: world.plugins() and world.plugins()[0].pid == after)
    # Killed, it is started again by the next request.
    world.plugins()[0].kill()
    assert eventually(lambda: "world" in try_read(vault))
    # Vault starts nothing whose checksum is another.
    (world.folder / "plugins" / "notes").write_text("#!/bin/sh\nexit 1\n")
    vault("vault plugin reload -plugin=notes || true")
    assert "checksum" in vault("vault read notes/hello || true") + vault.log


def try_read(vault: Vault) -> str:
    return vault("vault read -field=text notes/hello || true")


def test_it_leaves_when_vault_is_killed(world: World, vault: Vault, host: str) -> None:
    """With a request in flight, which waits for a pipe that nobody writes to."""
    source = (world.folder / "engine_plugin.py").read_text()
    (world.folder / "engine_plugin.py").unlink()
    before = '        if operation == "list":\n'
    waits = f'        open("{world.folder}/waits").read()\n'
    (world.folder / "engine_plugin.py").write_text(source.replace(before, waits + before))
    os.mkfifo(world.folder / "waits")
    lines = vault.rest.splitlines()
    vault("\n".join(lines[:-2]))
    world.run("vault", "read", "notes/hello")
    writer = eventually(lambda: writer_of(world.folder / "waits"))
    assert writer
    vault.process.kill()
    assert world.gone()
    os.close(writer)
    for path in world.temporary.iterdir():  # the killed host's sockets
        path.unlink()
