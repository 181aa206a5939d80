"""The KV service, as a Go host and go-plugin's own KV programs see it."""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness import PLUGINS, ROOT, CallError, World, eventually
from kv import SUFFIX, get, put

import kv_pb2
import plugin


@pytest.mark.parametrize("value", [b"", b"world", b"\xff\xfe\x00\n|", os.urandom(64 << 20)], ids=len)
@pytest.mark.windows
def test_values_are_bytes(world: World, value: bytes) -> None:
    host = world.started()
    put(host, "hello", value)
    assert (world.folder / "kv_hello").read_bytes() == value + SUFFIX
    assert hashlib.sha256(get(host, "hello")).digest() == hashlib.sha256(value + SUFFIX).digest()


@pytest.mark.plain_only("go-plugin's example has its own host")
def test_go_plugins_own_command(world: World, example: Callable[[str], Path]) -> None:
    """README's command works, and the Python and Go plugins read each other's files."""
    python, go = shlex.join([sys.executable, str(world.kv_plugin)]), str(example("grpc/plugin-go-grpc"))

    def kv(plugin: str, *arguments: str) -> str:
        env = {**world.env, "KV_PROTO": "grpc", "KV_PLUGIN": plugin}
        run = subprocess.run([example("grpc"), *arguments], cwd=world.folder, env=env, capture_output=True, check=True)
        return run.stdout.decode()

    kv(python, "put", "hello", "wörld")
    assert kv(python, "get", "hello") == kv(go, "get", "hello") == "wörld\n\nWritten from plugin-python\n"
    kv(go, "put", "hello-world", "world")
    assert kv(python, "get", "hello-world") == "world\n\nWritten from plugin-go-grpc\n"


@pytest.mark.windows
def test_put_survives_sigkill(world: World) -> None:
    host = world.started()
    put(host, "hello", b"world")
    world.plugin().kill()
    assert (world.folder / "kv_hello").read_bytes() == b"world" + SUFFIX


def test_put_killed_midway_leaves_the_old_value(world: World) -> None:
    world.env["KV_PLUGIN"] = str(world.kv_plugin)
    host = world.started(PLUGINS / "stops_midway.py")
    plugin = world.plugin()
    put(host, "hello", b"old")
    message = kv_pb2.PutRequest(key="hello", value=b"new" * 20_000_000).SerializeToString()
    begun = host.begin("call", method="/proto.KV/Put", message=message)
    assert eventually(lambda: plugin.status() == psutil.STATUS_STOPPED)
    (beside,) = world.folder.glob(".kv_*")
    assert beside.stat().st_size == (60_000_000 + len(SUFFIX)) // 2
    plugin.kill()
    with pytest.raises(CallError, match="Unavailable"):
        begun()
    assert (world.folder / "kv_hello").read_bytes() == b"old" + SUFFIX


@pytest.mark.slow
def test_16_puts_at_once_leave_one_of_them(world: World) -> None:
    """A reader meanwhile finds one whole value; their lengths differ widely."""
    host = world.started()
    values = [bytes([65 + number]) * (1 << number + 8) for number in range(16)]
    put(host, "k", values[0])
    messages = [kv_pb2.PutRequest(key="k", value=value).SerializeToString() for value in values]
    for _ in range(4):
        calls = [host.begin("call", method="/proto.KV/Put", message=message) for message in messages]
        for call in calls:
            assert get(host, "k") in [value + SUFFIX for value in values]
            call()
    assert get(host, "k") in [value + SUFFIX for value in values]
    assert [file.name for file in world.folder.iterdir()] == ["kv_k"]


KEYS = {
    "hello": "kv_hello",
    "Az09_-": "kv_Az09_-",
    "hällo": "kv_h%C3%A4llo",
    "../escape": "kv_%2E%2E%2Fescape",
    "/etc/passwd": "kv_%2Fetc%2Fpasswd",
    "a\\b": "kv_a%5Cb",
    "nul\0": "kv_nul%00",
    "line\nend\x7f\x85": "kv_line%0Aend%7F%C2%85",
    "100%": "kv_100%25",
    "%2F": "kv_%252F",
    "..": "kv_%2E%2E",
    "a b:c*": "kv_a%20b%3Ac%2A",
    "pb2": "kv_pb2",
    "pb2.py": "kv_pb2%2Epy",
    "PB2_grpc.PY": "kv_PB2_grpc%2EPY",
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.windows
def test_names_of_files(key: str) -> None:
    assert plugin.KVServicer()._file_of(key) == KEYS[key]


@pytest.mark.windows
def test_keys_stay_in_the_folder(world: World) -> None:
    host = world.started()
    for key in KEYS:
        put(host, key, b"v")
        assert get(host, key) == b"v" + SUFFIX
    assert {entry.name for entry in world.folder.iterdir()} == set(KEYS.values())
    assert {entry.name for entry in world.folder.parent.iterdir()} == {"work", "tmp"}


@pytest.mark.windows
def test_no_key_replaces_the_plugins_own_code(world: World) -> None:
    """Run from its own folder, the plugin still starts after Puts to keys that look like its file names."""
    for name in ("plugin.py", "kv_pb2.py", "kv_pb2_grpc.py"):
        shutil.copy(ROOT / name, world.folder)
    before = {file.name: file.read_bytes() for file in world.folder.iterdir()}
    del world.env["PYTHONPATH"]
    shutil.copytree(ROOT / "goplugin", world.folder / "goplugin")
    for _ in range(2):
        host = world.started("plugin.py")
        for key in ("pb2.py", "pb2_grpc.py", "pb2.pyc", "pb2.so", "pb2.abi3.so", "pb2_grpc.so", "PB2.PY"):
            put(host, key, b"raise SystemExit")
        host.close()
    assert {name: (world.folder / name).read_bytes() for name in before} == before


def test_errors_say_what_is_wrong(world: World) -> None:
    host = world.started()
    with pytest.raises(CallError, match="NotFound.*nobody put this") as missing:
        get(host, "nobody put this")
    assert missing.value.code == "NotFound"
    for call in (lambda key: get(host, key), lambda key: put(host, key, b"v")):
        with pytest.raises(CallError, match="File name too long"):
            call("k" * 300)
    (world.folder / "kv_folder").mkdir()
    with pytest.raises(CallError, match="Is a directory"):
        get(host, "folder")
    put(host, "k" * 252, b"the longest name still works")
    assert not list(world.folder.glob(".kv_*"))


def test_full_disk(world: World) -> None:
    """The disk is a real file system of 64 KiB, in a new mount namespace."""
    command = shlex.join([sys.executable, str(world.kv_plugin)])
    mount = f"mount -t tmpfs -o size=64k none {shlex.quote(str(world.folder))} && cd . && cd $PWD && exec {command}"
    host = world.started(cmd=["unshare", "--map-root-user", "--mount", "sh", "-c", mount])
    put(host, "k", b"old")
    with pytest.raises(CallError, match="Unknown.*No space left on device"):
        put(host, "k", b"v" * 100_000)
    assert get(host, "k") == b"old" + SUFFIX
    put(host, "other", b"v" * 40_000)  # the failed Put gave its space back


@pytest.mark.grpcio_only("pygrpc-native's plugin could not read its modules by then")
@pytest.mark.plain_only("the plugin becomes another user, whom the companion's folder keeps out")
def test_no_permission(world: World) -> None:
    (world.folder / "kv_secret").write_bytes(b"secret")
    (world.folder / "kv_secret").chmod(0)
    world.folder.chmod(0o555)
    host = world.started(PLUGINS / "unprivileged.py")
    for attempt in (lambda: put(host, "k", b"v"), lambda: get(host, "secret")):
        with pytest.raises(CallError, match="Unknown.*Permission denied"):
            attempt()
    assert [file.name for file in world.folder.iterdir()] == ["kv_secret"]
