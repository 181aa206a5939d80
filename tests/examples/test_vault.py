"""The secrets engine and the auth method of examples/vault under Vault, which `make hosts HOSTS=vault` builds.

test_vault_ends.py tests what happens when Vault or the plugin ends.
"""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import NAMESPACES, Docker
from harness import World, eventually
from vault import Vault, VaultError

from examples import Example, programs

pytestmark = [
    Example.group("vault"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("host", programs("vault")),
]


def test_what_the_readme_shows(vault: Vault) -> None:
    vault.start_development()
    assert vault(vault.rest).split() == vault.example.shown(vault.readme).split()


def test_roles_and_leases(vault: Vault) -> None:
    vault.start_production()
    vault.register("web")
    assert vault("vault list -format=json web/role") == '[\n  "reader"\n]\n'
    assert "24h" in vault("vault read web/role/reader")
    name, lease = vault.issue()
    assert vault.accounts() == [name]
    assert "lease_duration     2h" in vault(f"vault lease renew -increment=2h {lease}")
    assert "exceeded the effective max_ttl" in vault(f"vault lease renew -increment=48h {lease}")
    assert vault("vault list -format=json sys/leases/lookup/web/creds/reader").count('"') == 2
    vault(f"vault lease revoke -sync {lease}")
    assert vault.accounts() == []
    with pytest.raises(VaultError, match="lease not found"):
        vault.ask("PUT", "sys/leases/renew", lease_id=lease)
    # A lease that nobody revokes.
    vault("vault write web/role/short ttl=3s max_ttl=3s")
    vault.issue(role="short")
    assert len(vault.accounts()) == 1
    assert eventually(lambda: vault.accounts() == [])
    # A role that is gone.
    _, lease = vault.issue()
    vault("vault delete web/role/reader")
    assert "the role is gone" in vault(f"vault lease renew {lease}", 2)
    assert "No value found" in vault("vault read web/role/reader", 2)
    assert "vault write web/role/reader: there is none" in vault("vault read web/creds/reader", 2)
    assert "unsupported path" in vault("vault write web/nothing x=y", 2)
    vault("vault secrets disable web")
    assert vault.accounts() == []
    assert re.search(rf"\[INFO\] +secrets.accounts.*account added: .*account={name}", vault.log), vault.log
    assert not re.search(r"\[(ERROR|WARN)\] +secrets.accounts", vault.log), vault.log


def test_a_revocation_that_fails_is_tried_again(vault: Vault) -> None:
    vault.start_production()
    vault.register("web")
    _, lease = vault.issue()
    file = vault.world.folder / "web"
    file.rename(file.with_suffix(".away"))
    file.mkdir()
    assert "Is a directory" in vault(f"vault lease revoke -sync {lease}", 2)
    file.rmdir()
    file.with_suffix(".away").rename(file)
    vault(f"vault lease revoke -sync {lease}")
    assert vault.accounts() == []


def test_who_may_what(vault: Vault) -> None:
    """config needs sudo. A write is either a "create" or an "update"."""
    vault.start_production()
    vault.register("web")
    root = vault.token
    rules = {"web/config": '"update", "read"', "web/role/reader": '"create"', "web/role/writer": '"create"'}
    policy = " ".join(f'path "{path}" {{ capabilities = [{what}] }}' for path, what in rules.items())
    vault.ask("PUT", "sys/policies/acl/author", policy=policy)
    vault.token = vault.ask("POST", "auth/token/create", policies=["author"])["auth"]["client_token"]
    for path in ("web/config", "web/role/reader"):
        with pytest.raises(VaultError, match="permission denied"):
            vault.ask("PUT", path)
    vault.ask("PUT", "web/role/writer")
    vault.token = root


def test_login(vault: Vault) -> None:
    vault.start_production()
    vault.register("web")
    vault("vault auth enable people")
    vault.ask("PUT", "sys/policies/acl/readers", policy='path "web/creds/reader" { capabilities = ["read"] }')
    vault("vault write auth/people/user/ann password=sesame policies=readers ttl=10m max_ttl=1h")
    assert "sesame" not in vault("vault read auth/people/user/ann")
    root, vault.token = vault.token, ""
    for name in ("ann", "bob"):
        with pytest.raises(VaultError, match="400.*wrong name or password"):
            vault.ask("PUT", f"auth/people/login/{name}", password="open sesame")  # noqa: S106
        with pytest.raises(VaultError, match="403"):
            vault.ask("GET", f"auth/people/user/{name}")
    auth = vault.ask("PUT", "auth/people/login/ann", password="sesame")["auth"]  # noqa: S106
    assert (auth["policies"], auth["lease_duration"], auth["renewable"]) == (["default", "readers"], 600, True)
    vault.token = auth["client_token"]
    name, _ = vault.issue()
    with pytest.raises(VaultError, match="permission denied"):
        vault.ask("GET", "web/role/reader")
    assert vault.ask("PUT", "auth/token/renew-self", increment="2h")["auth"]["lease_duration"] <= 3600
    # Vault's identity knows the person: another login gives the same entity.
    again = vault.ask("PUT", "auth/people/login/ann", password="sesame")["auth"]  # noqa: S106
    assert again["entity_id"] == auth["entity_id"] != ""
    vault.token = root
    vault("vault write auth/people/user/ann policies=others")
    vault.token = auth["client_token"]
    with pytest.raises(VaultError, match="log in again: the user has changed"):
        vault.ask("PUT", "auth/token/renew-self")
    # The token's accounts end with it.
    assert vault.accounts() == [name]
    vault.ask("PUT", "auth/token/revoke-self")
    assert eventually(lambda: vault.accounts() == [])
    vault.token = root


def test_mounts_share_a_process_and_nothing_else(world: World, vault: Vault) -> None:
    vault.start_production()
    vault.register("web", "two")
    vault("vault auth enable people && vault auth enable -path=others people")
    assert sorted(len(process.cmdline()) for process in world.plugins()) == [2, 3]  # engine; auth method
    one, _ = vault.issue("web")
    two, _ = vault.issue("two")
    assert (vault.accounts("web"), vault.accounts("two")) == ([one], [two])
    vault("vault write auth/people/user/ann password=sesame")
    assert "wrong name" in vault("vault write auth/others/login/ann password=sesame", 2)
    vault("vault write auth/people/login/ann password=sesame")
    vault("vault secrets disable web && vault auth disable others")
    assert (vault.accounts("web"), vault.accounts("two")) == ([], [two])
    vault.issue("two")
    vault("vault secrets disable two && vault auth disable people")
    assert world.gone()


@pytest.fixture
def docker(world: World, vault: Vault) -> Iterator[Docker]:
    trial = [*NAMESPACES, "sh", "-c", "mount -t tmpfs none /mnt && mount -t proc none /proc"]
    if subprocess.run(trial, check=False).returncode != 0:
        pytest.skip("this user may not make the namespaces of a container")
    folders = [world.folder, vault.example.folder, Path(sys.prefix), Path(sys.base_prefix)]
    docker = Docker(world, "ab" * 32, folders)
    world.env["DOCKER_HOST"] = f"tcp://127.0.0.1:{docker.server_address[1]}"
    threading.Thread(target=docker.serve_forever).start()
    yield docker
    docker.close()


def test_in_a_container(world: World, vault: Vault, docker: Docker) -> None:
    """Vault uses a RunnerFunc, multiplexing, AutoMTLS and one Unix socket that both sides can reach."""
    vault.start_production()
    for kind, name in (("secret", "accounts"), ("auth", "people")):
        options = f"-oci_image=me/{name} -sha256={docker.image} -version=v0.1.0 -env=MARKER={world.marker}"
        options += f" -command={world.folder / 'plugins' / 'accounts'} {'-args=auth' * (kind == 'auth')}"
        vault(f"vault plugin register {options} {kind} {name}")
    vault.enable("web")
    vault.enable("two")
    vault("vault auth enable people")
    assert len(world.plugins()) == 2
    assert all("PLUGIN_MULTIPLEX_GRPC=true" in config["Env"] for config in docker.configs)
    name, lease = vault.issue("web")
    other, _ = vault.issue("two")
    vault(f"vault lease renew {lease} && vault lease revoke -sync {lease}")
    assert (vault.accounts("web"), vault.accounts("two")) == ([], [other])
    vault("vault write auth/people/user/ann password=sesame && vault write auth/people/login/ann password=sesame")
    vault("vault plugin reload -plugin=accounts")
    vault.issue("web")
    (engine,) = (process for process in world.plugins() if process.cmdline()[-1] != "auth")
    engine.kill()
    assert eventually(lambda: issued(vault, "two"))
    assert f"account={name}" in vault.log
    assert vault.process
    vault.process.kill()
    assert world.gone()
    for folder in world.temporary.glob("plugin-dir*"):  # the killed Vault has left it
        folder.rmdir()


def issued(vault: Vault, mount: str) -> bool:
    """Whether Vault issues an account; it cannot until it has noticed the end of the container."""
    try:
        return bool(vault.issue(mount))
    except VaultError:
        return False
