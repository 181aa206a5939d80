"""`python -m goplugin check` with this plugin, with go-plugin's own Go plugins, and with deliberate mistakes."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness import ROOT, eventually

from goplugin import __main__, check
from goplugin.hosts import HOSTS

COOKIE = ["--cookie", "BASIC_PLUGIN=hello"]

# A plugin as the guide writes it, without goplugin.
GUIDE = """
import os, subprocess, sys
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2_grpc

if os.environ.get("BASIC_PLUGIN") != "hello":
    sys.exit("this is a plugin")
server = grpc.server(futures.ThreadPoolExecutor(10))
servicer = health.HealthServicer()
servicer.set("plugin", 1)
HEALTH
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"1|1|tcp|127.0.0.1:{port}|grpcCERT", flush=True)
EXTRA
server.wait_for_termination()
"""
HEALTH = "health_pb2_grpc.add_HealthServicer_to_server(servicer, server)"
REFLECTION = "from grpc_reflection.v1alpha import reflection; reflection.enable_server_reflection"
RIGHT = {"HEALTH": HEALTH, "CERT": "", "EXTRA": ""}


def guide(changes: dict[str, str]) -> str:
    script = GUIDE
    for mark, text in (RIGHT | changes).items():
        script = script.replace(mark, text, 1) if mark != "HEALTH" else script.replace("\nHEALTH\n", f"\n{text}\n")
    return script


def results(
    capsys: pytest.CaptureFixture[str], *command: str | Path, host: str = ""
) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the results that --json prints, by the name of the check."""
    of_host = ["--host", host] if host else COOKIE
    code = __main__.main(["check", *of_host, "--timeout", "60", "--json", "--", *map(str, command)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return code, {line["check"]: line for line in lines}


@pytest.mark.windows
def test_this_plugin(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "goplugin", "check", *COOKIE, "--", sys.executable, str(ROOT / "plugin.py")]
    run = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert {line.split()[0] for line in run.stdout.splitlines()} == {"ok"}
    assert len(run.stdout.splitlines()) == 19


@pytest.mark.slow
def test_go_plugins_own(
    example: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "PATIENCE", 1.0)
    code, found = results(capsys, example("grpc/plugin-go-grpc"))
    assert code == 0
    assert {name for name, one in found.items() if one["outcome"] != check.OK} == {"host dies"}
    assert found["services"]["text"] == "proto.KV"


@pytest.mark.slow
def test_without_proc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on macOS and Windows: `check` does not approve what it cannot see, and leaves no plugin running."""
    monkeypatch.setattr(check, "_PROC", tmp_path / "none")
    monkeypatch.setattr(check, "PATIENCE", 1.0)
    code, found = results(capsys, sys.executable, ROOT / "plugin.py")
    assert code == 0
    assert found["host dies"]["outcome"] == check.OK
    assert "this system does not list processes" in found["left behind"]["text"]
    pid = tmp_path / "pid"
    stays = f"import os, pathlib; pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n"
    _, found = results(capsys, sys.executable, "-c", stays + guide({}))
    assert found["host dies"]["outcome"] == check.NOTE
    assert eventually(lambda: not psutil.pid_exists(int(pid.read_text())))


@pytest.mark.parametrize(
    ("changes", "mistakes"),
    [
        ({}, {"Shutdown": "had to be killed", "AutoMTLS: starts": "has no certificate"}),
        ({"HEALTH": ""}, {"health": "UNIMPLEMENTED"}),
        ({"EXTRA": "print('one more line', flush=True)"}, {"stdout": "one more line"}),
        ({"EXTRA": """sys.stderr.write('{"@timestamp": 1}\\n'); sys.stderr.flush()"""}, {"log": "a host panics"}),
        pytest.param(
            {"EXTRA": "subprocess.Popen(['sleep', '20'], stdout=-3, stderr=-3)"},
            {"left behind": "processes"},
            marks=pytest.mark.unix_only("the system does not show which processes a plugin leaves behind"),
        ),
        ({"CERT": "|" + "A" * 60}, {"certificate": "but the host did not ask for AutoMTLS"}),
        ({"EXTRA": f"{REFLECTION}(['grpc.health.v1.Health'], server)"}, {"services": "none of its own"}),
    ],
)
@pytest.mark.windows
def test_a_mistake_is_found(
    changes: dict[str, str],
    mistakes: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check, "PATIENCE", 1.0)
    code, found = results(capsys, sys.executable, "-c", guide(changes))
    assert code == 1
    for name, says in mistakes.items():
        assert found[name]["outcome"] == check.FAILED
        assert says in found[name]["text"]
        assert found[name]["cure"]


@pytest.mark.windows
@pytest.mark.parametrize("host", ["terraform", "tflint", "steampipe"])
def test_a_host_is_known_by_name(
    host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` uses the host's cookie, newest version and AutoMTLS setting. The guide's plugin has no AutoMTLS."""
    monkeypatch.setattr(check, "PATIENCE", 1.0)
    (versions, key, value), auto_mtls = HOSTS[host]
    script = guide({}).replace('"BASIC_PLUGIN"', repr(key)).replace('"hello"', repr(value))
    code, found = results(capsys, sys.executable, "-c", script.replace("1|1|", f"1|{versions[-1]}|"), host=host)
    assert code == 1
    assert found["by hand"]["outcome"] == check.OK
    if auto_mtls:
        assert list(found) == ["by hand", "AutoMTLS: starts"]
        assert "has no certificate" in found["AutoMTLS: starts"]["text"]
        assert "PLUGIN_CLIENT_CERT" in found["AutoMTLS: starts"]["cure"]
    else:
        assert found["version"]["text"] == f"{versions[-1]} of {list(versions)}"
        assert not [name for name in found if name.startswith("AutoMTLS")]
    _, found = results(capsys, sys.executable, "-c", guide({}), host=host)
    assert "this is a plugin" in found[f"{'AutoMTLS: ' if auto_mtls else ''}starts"]["text"]


@pytest.mark.slow
def test_services_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` lists them by reflection. Without reflection it says that they are unknown."""
    monkeypatch.setattr(check, "PATIENCE", 1.0)
    _, found = results(capsys, sys.executable, "-c", guide({"EXTRA": f"{REFLECTION}(['b.C', 'a.B'], server)"}))
    assert (found["services"]["outcome"], found["services"]["text"]) == (check.OK, "a.B, b.C")
    _, found = results(capsys, sys.executable, "-c", guide({}))
    assert found["services"]["outcome"] == check.NOTE
    assert "unknown" in found["services"]["text"]


@pytest.mark.windows
def test_a_plugin_that_serves_only_health(capsys: pytest.CaptureFixture[str]) -> None:
    text = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{(ROOT / 'plugin.py').read_text(encoding='utf-8')}"
    add = "    kv_pb2_grpc.add_KVServicer_to_server(KVServicer(), server)\n"
    assert add in text
    code, found = results(capsys, sys.executable, "-c", text.replace(add, ""))
    assert code == 1
    assert [name for name, one in found.items() if one["outcome"] != check.OK] == ["services"]
    assert "none of its own" in found["services"]["text"]


@pytest.mark.windows
def test_a_wrong_package_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("plugin.py", "kv_pb2.py", "kv_pb2_grpc.py"):
        text = (ROOT / name).read_text(encoding="utf-8").replace(r"\x05proto", r"\x05wrong")
        text = text.replace("proto.KV", "wrong.KV").replace(".proto.", ".wrong.")
        (tmp_path / name).write_text(f"import sys; sys.path.append({str(ROOT)!r})\n{text}", encoding="utf-8")
    _, found = results(capsys, sys.executable, tmp_path / "plugin.py")
    assert found["services"]["text"] == "wrong.KV"


ENDS = "sys.stderr.write('its last words\\\\n'); sys.stderr.flush(); os._exit(7)"


@pytest.mark.parametrize(
    "changes",
    [
        {"EXTRA": ENDS},
        {"EXTRA": f"import time; time.sleep(0.3); {ENDS}"},
        {"HEALTH": f"servicer.Check = lambda request, context: ({ENDS.replace('; ', ', ')})\n{HEALTH}"},
    ],
    ids=["at once", "soon", "at the health call"],
)
@pytest.mark.windows
def test_the_end_of_the_process_is_what_failed(changes: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """`check` stops waiting, and blames neither TLS nor the host's death. It may connect before the process ends."""
    began = time.monotonic()
    code, found = results(capsys, sys.executable, "-c", guide(changes))
    assert time.monotonic() - began < 50  # with --timeout 60
    assert code == 1
    name = "starts" if found["starts"]["outcome"] == check.FAILED else "runs"
    assert found[name]["outcome"] == check.FAILED
    assert "AutoMTLS" in next(key for key, one in found.items() if one["outcome"] == check.FAILED and key != name)
    assert "exit code 7" in found[name]["text"]
    assert "its last words" in found[name]["text"]
    assert found[name]["cure"].startswith("see the plugin's log")
    assert "host dies" not in found


@pytest.mark.slow
def test_a_child_that_keeps_stderr_is_no_plugin_that_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    child = "subprocess.Popen(['sleep', '60'])"
    began = time.monotonic()
    _, found = results(capsys, sys.executable, "-c", guide({}).replace("    sys.exit(", f"    {child}; sys.exit("))
    assert time.monotonic() - began < 50
    assert found["by hand"]["outcome"] == check.OK


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cookie", "hello", "--", "x"], "--cookie needs KEY=VALUE"),
        (["--", "x"], "one of the arguments --host --cookie is required"),
        ([*COOKIE, "--host", "nomad", "--", "x"], "not allowed with"),
        (["--host", "podman", "--", "x"], "invalid choice: 'podman' (choose from"),
        ([*COOKIE, "--versions", "new", "--", "x"], "--versions needs numbers"),
        ([*COOKIE], "required: -- COMMAND"),
        ([*COOKIE, "--", "./no-such-command"], "cannot run the command"),
    ],
)
@pytest.mark.windows
def test_wrong_arguments(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["check", *arguments])
    assert says in capsys.readouterr().err
