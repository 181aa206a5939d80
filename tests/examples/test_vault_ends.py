"""A reload or kill of the plugin of examples/vault, a seal or kill of Vault: leases survive, nothing else stays."""

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import World, eventually
from vault import Vault, VaultError

from examples import Example, programs, writer_of

pytestmark = [
    Example.group("vault"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("host", programs("vault")),
]


def pid(world: World) -> int:
    """The pid of the engine's one process."""
    (plugin,) = world.plugins()
    return plugin.pid


def wait_in(vault: Vault, before: str) -> None:
    """Have the engine wait before this line until the test writes to the pipe."""
    path = vault.world.folder / "accounts_engine.py"
    source = path.read_text()
    (indented,) = [line for line in source.splitlines() if line.strip() == before]
    waits = indented.replace(before, f'open("{vault.world.folder}/waits").read()')
    path.write_text(source.replace(indented, f"{waits}\n{indented}"))
    os.mkfifo(vault.world.folder / "waits")


def reached(vault: Vault) -> int:
    """Wait until the engine has reached the pipe; return the descriptor to write to."""
    writer: int = eventually(lambda: writer_of(vault.world.folder / "waits"))
    assert writer
    return writer


def wait_no_more(vault: Vault) -> None:
    """Replace the pipe by an empty file, which the engine reads at once."""
    (vault.world.folder / "waits").unlink()
    (vault.world.folder / "waits").touch()


def kill_plugin(world: World) -> None:
    """Kill only the plugin."""
    world.plugin().kill()
    assert world.gone()


def soon(vault: Vault, method: str, path: str, **data: str) -> str:
    """Call Vault's API after the plugin was killed, until Vault has noticed that, and return its answer.

    Before that, Vault answers "Unavailable"; then it starts the plugin again for the request.
    """
    while True:
        try:
            return str(vault.ask(method, path, **data))
        except VaultError as error:
            if "Unavailable" not in str(error):
                return str(error)


def left(world: World) -> list[Path]:
    """The contents of the folder for temporary files."""
    return list(world.temporary.iterdir())


LOGGED = '_log.info("account added", extra={"account": account})  # never the password'
BY_PLUGIN = "vault plugin reload -plugin=accounts"
BY_MOUNT = "vault write sys/plugins/reload/backend mounts=web/"  # `vault plugin reload -mounts=web/` is 404 in 1.21


@pytest.mark.parametrize("command", [BY_PLUGIN, BY_MOUNT], ids=["by plugin", "by mount"])
def test_reload(world: World, vault: Vault, command: str) -> None:
    """The process has two mounts, with leases. Requests may fail while Vault ends the process, but not afterwards."""
    vault.start_production()
    vault.register("web", "two")
    leases = {mount: vault.issue(mount) for mount in ("web", "two")}
    before, ended = pid(world), threading.Event()
    answered, failed = {"web": 0, "two": 0}, []

    def keep_asking(mount: str) -> None:
        while not ended.is_set():
            try:
                vault.ask("GET", f"{mount}/role/reader")
                answered[mount] += 1
            except VaultError as error:
                failed.append(error)

    with ThreadPoolExecutor() as threads:
        for mount in leases:
            threads.submit(keep_asking, mount)
        for _ in range(3):
            vault(command)
            failed.clear()
            answered.update(web=0, two=0)
            eventually(lambda: min(answered.values()) > 5)
            if failed or not all(answered.values()):
                break
        ended.set()
    assert failed == []
    assert all(answered.values())
    assert eventually(lambda: len(world.plugins()) == 1)
    assert pid(world) != before
    for mount, (name, lease) in leases.items():
        assert vault.accounts(mount) == [name]
        vault(f"vault lease renew {lease} && vault lease revoke -sync {lease}")
        assert vault.accounts(mount) == []


def test_a_new_version(world: World, vault: Vault) -> None:
    """After the reload, the tuned mount uses the new version, the other one still the old version."""
    vault.start_production()
    vault.register("web", "two")
    name, lease = vault.issue()
    for file in ("accounts_plugin.py", "plugins/accounts"):
        text = (world.folder / file).read_text()
        new = world.folder / file.replace("accounts", "accounts2")
        new.write_text(text.replace("v0.1.0", "v0.2.0").replace("accounts_plugin", "accounts2_plugin"))
        new.chmod(0o755)
    vault(
        "vault plugin register -sha256=$(sha256sum plugins/accounts2 | cut -d' ' -f1) -version=v0.2.0"
        " -command=accounts2 secret accounts"
    )
    vault("vault secrets tune -plugin-version=v0.2.0 web && vault plugin reload -plugin=accounts")
    mounts = vault.ask("GET", "sys/mounts")
    assert [mounts[f"{path}/"]["running_plugin_version"] for path in ("web", "two")] == ["v0.2.0", "v0.1.0"]
    assert len(world.plugins()) == 2
    assert vault.accounts() == [name]
    vault(f"vault lease renew {lease} && vault lease revoke -sync {lease}")
    assert vault.accounts() == []


def test_a_killed_plugin(world: World, vault: Vault) -> None:
    """The next request for any mount starts it again, and so does a revocation."""
    vault.start_production()
    vault.register("web", "two")
    leases = {mount: vault.issue(mount) for mount in ("web", "two")}
    for mount, (name, lease) in leases.items():
        kill_plugin(world)
        assert lease in soon(vault, "PUT", "sys/leases/renew", lease_id=lease)
        assert vault.accounts(mount) == [name]
    kill_plugin(world)
    for mount, (_, lease) in leases.items():
        vault(f"vault lease revoke {lease}")  # Vault retries it
        assert eventually(lambda mount=mount: vault.accounts(mount) == [])  # type: ignore[misc]
    assert len(world.plugins()) == 1


def test_a_plugin_killed_in_a_request(world: World, vault: Vault) -> None:
    """The request fails and leaves an account without a lease, which goes with the mount or at its max_ttl."""
    wait_in(vault, LOGGED)
    vault.start_production()
    vault.register("web")
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(vault.issue)
        writer = reached(vault)
        kill_plugin(world)
        with pytest.raises(VaultError, match="Unavailable"):
            asked.result()
    os.close(writer)
    wait_no_more(vault)
    assert "username" in soon(vault, "GET", "web/creds/reader")
    assert len(vault.accounts()) == 2
    vault("vault secrets disable web")
    assert vault.accounts() == []


def test_another_checksum(world: World, vault: Vault) -> None:
    """Vault does not start a program with another checksum."""
    vault.start_production()
    vault.register("web")
    launcher = world.folder / "plugins" / "accounts"
    launcher.write_text(launcher.read_text() + "\n")
    kill_plugin(world)
    assert "checksum" in soon(vault, "GET", "web/creds/reader")
    assert world.gone()


def test_seal_and_unseal(world: World, vault: Vault) -> None:
    vault.start_production()
    vault.register("web", "two")
    vault("vault auth enable people && vault write auth/people/user/ann password=sesame")
    name, lease = vault.issue()
    for _ in range(2):
        vault("vault operator seal")
        assert world.gone()
        assert left(world) == []
        vault.unseal()
        vault("vault write auth/people/login/ann password=sesame")
        vault.issue("two")
        assert len(world.plugins()) == 2
    vault(f"vault lease renew {lease}")
    assert vault.accounts() == [name]
    vault(f"vault lease revoke -sync {lease}")
    assert vault.accounts() == []
    assert len(vault.accounts("two")) == 2


def test_it_ends_with_vault(world: World, vault: Vault) -> None:
    vault.start_production()
    vault.register("web")
    vault.close()
    assert world.gone()
    assert left(world) == []


def test_a_killed_vault(world: World, vault: Vault) -> None:
    """Vault never learns of the account of a request in flight. Another Vault goes on with the same storage."""
    vault.start_production()
    vault.register("web")
    name, lease = vault.issue()
    vault("vault write web/role/short ttl=5s max_ttl=5s")
    kill_plugin(world)
    wait_in(vault, LOGGED)
    soon(vault, "GET", "web/role/short")
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(vault.issue, role="short")
        writer = reached(vault)
        assert vault.process
        vault.process.kill()
        with pytest.raises(OSError):
            asked.result()
    assert world.gone()
    os.close(writer)
    # The killed Vault has left the sockets of its broker. The plugin has left nothing.
    for path in left(world):
        assert path.name.startswith("plugin") and stat.S_ISSOCK(path.lstat().st_mode), path
        path.unlink()
    (known, _) = vault.accounts()
    assert known == name
    wait_no_more(vault)
    vault.start_production()
    vault(f"vault lease renew {lease}")
    assert eventually(lambda: vault.accounts() == [name], 90)  # Vault has the engine tidy up every minute
    vault(f"vault lease revoke -sync {lease}")
    assert vault.accounts() == []
