"""What only pygrpc-native can break. The other plugin tests run with it as well: see support/worlds.py."""

import probe
import pytest
from authors import WITHOUT_FOLDERS
from harness import ROOT, CallError, World, eventually
from kv import SUFFIX, get, put


def test_it_makes_the_calls(world: World) -> None:
    """pygrpc-native itself makes the calls, not grpcio behind it."""
    host = world.started(world.kv_plugin)
    put(host, "k", b"v")
    assert get(host, "k") == b"v" + SUFFIX
    host.ask("kill")
    assert not [record for record in host.log() if "gains nothing" in record["@message"]]


def test_with_the_code_of_an_old_generator(world: World) -> None:
    """Everything works, and the log says once for each method that it gains nothing."""
    world.env["PYTHONPATH"] = str(ROOT)  # so that it imports the project's own generated code
    script = world.folder / "plugin.py"
    script.write_text(world.kv_plugin.read_text())
    host = world.started(script)
    for _ in range(3):
        put(host, "k", b"v")
        assert get(host, "k") == b"v" + SUFFIX
    host.ask("kill")
    warnings = [record["@message"].split()[0] for record in host.log() if record["@level"] == "warn"]
    assert sorted(warnings) == ["/proto.KV/Get", "/proto.KV/Put"]


def test_its_folder_goes_when_the_plugin_is_killed(world: World) -> None:
    probe.start(world)
    (folder,) = world.temporary.iterdir()
    assert list(folder.glob("pygrpc-native-*/fallback.sock"))
    (plugin,) = world.plugins()
    plugin.kill()
    assert eventually(lambda: not folder.exists())


def test_no_temporary_folder(world: World) -> None:
    script = world.folder / "without.py"
    script.write_text(WITHOUT_FOLDERS)
    host = world.host(script)
    with pytest.raises(CallError, match="goplugin: This plugin cannot listen: .*Permission denied"):
        host.ask("start")
