"""examples/grafana under a host with Grafana's own client, compared with the same data source in Go."""

import itertools
import json
import os
import re
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import venvs
from harness import ROOT, CallError, Host, World, eventually

from examples import HOSTS, Example, Serving, load, programs

TWIN = HOSTS / "grafana-twin"
TOKEN = "secret"  # noqa: S105

pytestmark = [
    Example.group("grafana"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("host", programs("grafana-client")),
]


class Service(Serving):
    """The API that the data source queries: the example's own, with a list of the requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.most = 10_000  # answers; after that, it says that it is overloaded
        self.gate = threading.Event()  # while it is closed, the API does not answer
        self.gate.set()
        module = load("grafana/example/sensors.py")
        service = self

        class Handler(module.Handler):  # type: ignore[misc, name-defined]
            def answer(self, path: str, query: dict[str, str]) -> Any:
                service.asked.append(path)
                service.gate.wait(60)
                return super().answer(path, query) if len(service.asked) <= service.most else (503, "overloaded")

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """Ignore it: a plugin that leaves does not wait for the answer."""

        server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        super().__init__(server)

    def close(self) -> None:
        self.gate.set()
        super().close()

    def context(self, role: str = "Viewer", token: str = TOKEN, **settings: Any) -> dict[str, Any]:
        """The PluginContext of each call, in the form of Grafana's SDK."""
        source = {"UID": "u1", "Name": "Home", "URL": self.url, "JSONData": {"timeout": 20}}
        return {
            "OrgID": 1,
            "PluginID": "me-sensors-datasource",
            "User": {"Login": "me", "Role": role},
            "DataSourceInstanceSettings": {**source, "DecryptedSecureJSONData": {"token": token}, **settings},
        }


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


class Grafana(Host):
    """A running host with Grafana's client, and its plugin."""

    numbers = itertools.count(1)

    def call(self, method: str, **request: Any) -> Any:  # type: ignore[override]
        return self.ask("call", method=method, request=request)["answer"]

    def open(self, method: str, **request: Any) -> int:
        number = next(self.numbers)
        self.ask("open", method=method, request=request, stream=number)
        return number

    def all_of(self, method: str, **request: Any) -> list[Any]:
        """All messages of a streaming call."""
        stream, received = self.open(method, **request), []
        while "end" not in (answer := self.ask("recv", stream=stream)):
            received.append(answer["answer"])
        return received


@pytest.fixture
def grafana(world: World, copies: Callable[[str], Example], host: str) -> Iterator[Callable[..., Grafana]]:
    """Starts a host, by default for the example with the launcher of `make launcher`."""
    example = copies("grafana")
    example.run(world, "make --silent protos launcher")
    started = []

    def start(folder: Path | None = None, **config: Any) -> Grafana:
        config = {"folder": str(folder or plugin_folder(example)), "env": [f"MARKER={world.marker}"], **config}
        started.append(Grafana(Path(host), config, world.env))
        started[-1].ask("start")
        return started[-1]

    yield start
    for one in started:
        one.close()


def plugin_folder(example: Example) -> Path:
    return example.folder / "dist" / "me-sensors-datasource"


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    """The folder of the same data source in Go."""
    folder = tmp_path / "twin"
    folder.mkdir()
    shutil.copy(ROOT / "examples" / "grafana" / "plugin.json", folder)
    (folder / "gpx_sensors_linux_amd64").symlink_to(TWIN)
    return folder


def query(ref_id: str, *, seconds: int = 20, step: float = 1, **asked: Any) -> dict[str, Any]:
    start, end = (f"2026-11-28T10:{at // 60:02}:{at % 60:02}Z" for at in (0, seconds))
    return {
        "RefID": ref_id,
        "TimeRange": {"From": start, "To": end},
        "Interval": int(step * 1e9),
        "MaxDataPoints": 100,
        "JSON": asked,
    }


def checked(frame: dict[str, Any]) -> dict[str, Any]:
    """A live frame without its time and value, which differ each time."""
    (at,), (value,) = frame["data"].pop("values")
    assert abs(at / 1000 - time.time()) < 60
    assert value is None or value >= 7
    return frame


def everything(grafana: Grafana, service: Service) -> dict[str, Any]:
    """The answers of a data source to all calls that Grafana makes."""
    context = service.context()
    got: dict[str, Any] = {}

    def note(name: str, method: str, **request: Any) -> None:
        ask = grafana.all_of if method in ("CallResource", "QueryChunkedData") else grafana.call
        try:
            got[f"{method} {name}"] = ask(method, **request)
        except CallError as error:
            got[f"{method} {name}"] = error.code

    note("right", "CheckHealth", PluginContext=context)
    note("wrong token", "CheckHealth", PluginContext=service.context(token="x"))  # noqa: S106
    note("no token", "CheckHealth", PluginContext=service.context(token=""))
    note("no URL", "CheckHealth", PluginContext=service.context(URL=""))
    note("wrong timeout", "CheckHealth", PluginContext=service.context(JSONData={"timeout": "soon"}))
    queries = [
        query("A", sensor="kitchen"),
        query("B", sensor="cellar", seconds=3000),
        query("C", sensor="attic"),
        query("D"),
        query("E", sensor="kitchen", step=0.0001, seconds=3000),
        query("F", sensor="kitchen", seconds=0, step=7),
    ]
    for name, number in {"Arrow": 0, "JSON": 1}.items():
        note(name, "QueryData", PluginContext=context, Queries=queries, Format=number)
        note(name, "QueryChunkedData", PluginContext=context, Queries=queries, Format=number)
    for method, url in (
        ("GET", "sensors"),
        ("POST", "sensors"),
        ("GET", "nothing"),
        ("GET", "export"),
        ("GET", "export?sensor=attic&start=0&end=5&step=1"),
        ("GET", "export?sensor=kitchen&start=0&end=5&step=0"),
        ("GET", "export?sensor=kitchen&start=0&end=2500000&step=1000"),
    ):
        asked = {"Path": url.partition("?")[0], "URL": url, "Method": method}
        note(f"{method} {url}", "CallResource", PluginContext=context, **asked)
        for message in got[f"CallResource {method} {url}"]:
            if message["headers"].get("Content-Type") == ["application/json"]:
                message["body"] = json.loads(message["body"])
    for path in ("live/kitchen", "live/attic", "other"):
        note(path, "SubscribeStream", PluginContext=context, Path=path)
        if frame := got[f"SubscribeStream {path}"]["data"]:
            checked(frame)
        for role in ("Viewer", "Admin"):
            user = service.context(role)
            note(f"{path} {role}", "PublishStream", PluginContext=user, Path=path, Data={"value": 1})
    stream = grafana.open("RunStream", PluginContext=context, Path="live/kitchen")
    got["RunStream"] = [checked(grafana.ask("recv", stream=stream)["answer"]) for _ in range(2)]
    grafana.ask("cancel", stream=stream)
    with pytest.raises(CallError, match="Canceled"):
        grafana.ask("recv", stream=stream)
    metrics = grafana.call("CollectMetrics")
    got["CollectMetrics"] = sorted(re.findall(r"^sensors_queries_total{(.*)} (\d+)", metrics, re.MULTILINE))
    note("", "ValidateAdmission")
    note("", "ConvertObjects")
    return got


def test_grafana_cannot_tell_it_from_one_in_go(
    grafana: Callable[..., Grafana], service: Service, twin: Path, host: str
) -> None:
    in_python, in_go = (everything(grafana(folder), service) for folder in (None, twin))
    assert in_python.keys() == in_go.keys()
    for call, got in in_python.items():
        assert got == in_go[call], call
    assert in_python["QueryData Arrow"] == in_python["QueryData JSON"]


def test_what_the_readme_shows(
    world: World, copies: Callable[[str], Example], grafana: Callable[..., Grafana], service: Service, host: str
) -> None:
    example = copies("grafana")
    _, with_host, *_ = example.console_blocks()
    assert example.typed(with_host).splitlines() == ["make launcher", ".venv/bin/python example/sensors.py"]
    settings, url = example.shown(with_host).splitlines()
    assert settings.replace("/path/to/sensors", str(example.folder)) in example.run(world, "make launcher")
    server = world.run(".venv/bin/python", "example/sensors.py", "0", cwd=example.folder)
    assert server.stdout
    service.url = server.stdout.readline().decode().strip()
    assert re.sub(r"\d+$", "8000", service.url) == url
    assert grafana().call("CheckHealth", PluginContext=service.context())["status"] == "OK"
    server.kill()


def test_the_log(grafana: Callable[..., Grafana], service: Service, host: str) -> None:
    """The log has pairs and levels, and never the token."""
    one = grafana()
    context = service.context(token="do not log me")  # noqa: S106
    one.call("CheckHealth", PluginContext=context)
    reason = f"{service.url} answered 401 Unauthorized"
    assert one.logged("not healthy", **{"@level": "warn", "@module": "sensors", "reason": reason})
    one.call("QueryData", PluginContext=context, Queries=[query("A", sensor="kitchen")])
    assert not one.logged_now("do not log me")


def test_with_hardly_any_variables(grafana: Callable[..., Grafana], service: Service, host: str) -> None:
    """With Grafana's feature pluginsSkipHostEnvVars, the plugin does not even get PATH."""
    one = grafana(skip_host_env=True)
    assert one.call("CheckHealth", PluginContext=service.context())["status"] == "OK"


def test_a_crash(world: World, grafana: Callable[..., Grafana], service: Service, host: str) -> None:
    """The call in flight fails at once, and the next ones reach a new plugin."""
    one = grafana()
    service.gate.clear()
    asked = one.begin("call", method="CheckHealth", request={"PluginContext": service.context()})
    assert eventually(lambda: service.asked)
    world.plugin().kill()
    with pytest.raises(CallError, match="Unavailable"):
        asked()
    service.gate.set()
    assert eventually(lambda: one.ask("state")["starts"] == 2)
    assert one.call("CheckHealth", PluginContext=service.context())["status"] == "OK"
    assert len(world.plugins()) == 1


def test_an_export_that_breaks_off(grafana: Callable[..., Grafana], service: Service, twin: Path, host: str) -> None:
    """It is too late for an HTTP status, so Grafana gets an error with the reason."""
    for folder in (None, twin):
        one = grafana(folder)
        service.most = len(service.asked) + 2
        url = "export?sensor=kitchen&start=0&end=2500000&step=1000"
        asked = {"PluginContext": service.context(), "Path": "export", "URL": url, "Method": "GET"}
        stream = one.open("CallResource", **asked)
        assert [one.ask("recv", stream=stream)["answer"]["status"] for _ in range(2)] == [200, 0]
        with pytest.raises(
            CallError, match="the export of kitchen is not complete: .* 503 Service Unavailable"
        ) as raised:
            one.ask("recv", stream=stream)
        assert raised.value.code == "Unknown"


def test_streams_end_with_their_callers(
    world: World, grafana: Callable[..., Grafana], service: Service, host: str
) -> None:
    """The plugin stops querying the API. Neither a stream nor a call in flight keeps Kill() waiting."""
    one = grafana()
    live = {"PluginContext": service.context(), "Path": "live/kitchen"}
    url = "export?sensor=kitchen&start=0&end=250000000&step=1000"  # 250 messages
    export = {"PluginContext": service.context(), "Path": "export", "URL": url, "Method": "GET"}
    for method, request in {"RunStream": live, "CallResource": export}.items():
        stream = one.open(method, **request)
        assert one.ask("recv", stream=stream)["answer"]
        one.ask("cancel", stream=stream)
        with pytest.raises(CallError, match="Canceled"):
            while True:
                one.ask("recv", stream=stream)
    assert eventually(lambda: pauses(service, 3))
    assert len(service.asked) < 200
    one.ask("recv", stream=one.open("RunStream", **live))
    service.gate.clear()
    one.begin("call", method="CheckHealth", request={"PluginContext": service.context()})
    assert eventually(lambda: service.asked and service.asked[-1] == "/sensors")
    one.ask("stop")
    assert one.logged("plugin exited")
    assert not one.logged_now("plugin failed to exit gracefully")
    assert world.gone()


def pauses(service: Service, seconds: float) -> bool:
    """Whether the API gets no request for that time."""
    before = len(service.asked)
    time.sleep(seconds)
    return len(service.asked) == before


def test_it_leaves_when_grafana_is_killed(
    world: World, grafana: Callable[..., Grafana], service: Service, host: str
) -> None:
    """Even with a live channel and a call in flight."""
    one = grafana()
    one.ask("recv", stream=one.open("RunStream", PluginContext=service.context(), Path="live/kitchen"))
    service.gate.clear()
    one.begin("call", method="CheckHealth", request={"PluginContext": service.context()})
    assert eventually(lambda: service.asked)
    one.process.kill()
    assert world.gone()


def test_standalone(
    world: World,
    copies: Callable[[str], Example],
    grafana: Callable[..., Grafana],
    service: Service,
    twin: Path,
    host: str,
) -> None:
    """Grafana switches to a plugin that a person has started, and back. A Go plugin finds it by the same files."""
    folder = plugin_folder(copies("grafana"))
    one = grafana()
    before = world.plugin().pid
    command = [".venv/bin/python", "standalone.py"]
    by_hand = world.run(*command, cwd=folder.parent.parent)
    assert eventually(lambda: one.ask("state")["starts"] == 2)
    assert [process.pid for process in world.plugins()] == [by_hand.pid] != [before]
    assert one.ask("state")["address"] == (folder / "standalone.txt").read_text()
    assert (folder / "pid.txt").read_text() == str(by_hand.pid)
    assert one.call("CheckHealth", PluginContext=service.context())["status"] == "OK"
    for name in ("standalone.txt", "pid.txt"):
        shutil.copy(folder / name, twin)
    (twin / "gpx_sensors_linux_amd64").unlink()
    shutil.copy(TWIN, twin / "gpx_sensors_linux_amd64")  # it looks for the files beside itself
    in_go = grafana(twin)
    assert in_go.ask("state")["address"] == one.ask("state")["address"]
    assert in_go.call("CheckHealth", PluginContext=service.context())["status"] == "OK"
    in_go.ask("stop")
    one.ask("stop")  # the plugin survives the end of Grafana
    one = grafana()
    assert one.call("CheckHealth", PluginContext=service.context())["status"] == "OK"
    # A shell without job control has its background jobs ignore Ctrl-C.
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    by_hand.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
    assert by_hand.wait(20) == 0
    assert not (folder / "standalone.txt").exists()
    assert not (folder / "pid.txt").exists()
    assert eventually(lambda: one.ask("state")["starts"] == 2)
    assert one.call("CheckHealth", PluginContext=service.context())["status"] == "OK"


def test_the_launcher_leaves_when_grafana_is_killed(
    world: World, copies: Callable[[str], Example], grafana: Callable[..., Grafana], service: Service, host: str
) -> None:
    """The launcher leaves, but the plugin that a person has started stays. Killed, that leaves only its files."""
    folder = plugin_folder(copies("grafana"))
    with_address = {"GF_PLUGIN_GRPC_ADDRESS_ME_SENSORS_DATASOURCE": "127.0.0.1:0"}
    command = [".venv/bin/python", "standalone.py"]
    by_hand = world.run(*command, cwd=folder.parent.parent, env=world.env | with_address)
    assert eventually((folder / "pid.txt").exists)
    one = grafana()
    assert one.ask("state")["address"] == (folder / "standalone.txt").read_text()
    one.process.kill()
    assert eventually(lambda: [process.pid for process in world.processes()] == [by_hand.pid])
    by_hand.kill()
    by_hand.wait()
    assert (folder / "standalone.txt").exists()
    assert grafana().call("CheckHealth", PluginContext=service.context())["status"] == "OK"
    for name in ("standalone.txt", "pid.txt"):
        (folder / name).unlink()


@pytest.mark.parametrize("editable", [True, False])
def test_installed(
    world: World,
    copies: Callable[[str], Example],
    grafana: Callable[..., Grafana],
    service: Service,
    host: str,
    *,
    editable: bool,
) -> None:
    """Grafana can use the program that pip or uv installs, with -e and from a wheel in another venv."""
    example, folder = copies("grafana"), world.folder / "me-sensors-datasource"
    python = example.folder / ".venv" / "bin" / "python"
    if not editable:
        python = venvs.make(world.folder / "venv")
        venvs.uv("build", "--wheel", "-o", world.folder, example.folder)
        venvs.install(python, *world.folder.glob("*.whl"))
    folder.mkdir()
    shutil.copy(example.folder / "plugin.json", folder)
    (folder / "gpx_sensors_linux_amd64").symlink_to(python.with_name("gpx_sensors"))
    one = grafana(folder)
    assert one.call("CheckHealth", PluginContext=service.context())["status"] == "OK"


def test_what_is_distributed(
    world: World, copies: Callable[[str], Example], grafana: Callable[..., Grafana], service: Service, host: str
) -> None:
    """The archive's plugin needs no Python, and its files are where Grafana looks for them."""
    example = copies("grafana")
    said = example.run(world, "make dist VERSION=1.2.3")
    assert "dist/me-sensors-datasource-1.2.3.zip, for: gpx_sensors_linux_amd64" in said
    archive = example.folder / "dist" / "me-sensors-datasource-1.2.3.zip"
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            Path(packed.extract(entry, world.folder)).chmod(entry.external_attr >> 16)
    archive.unlink()
    folder = world.folder / "me-sensors-datasource"
    manifest = json.loads((folder / "plugin.json").read_text())
    assert manifest["info"]["version"] == "1.2.3"
    one = grafana(folder)
    got = one.call("QueryData", PluginContext=service.context(), Queries=[query("A", sensor="kitchen")])
    assert len(got["results"]["A"]["frames"][0]["data"]["values"][0]) == 21
    (pid,) = {process.pid for process in world.processes() if process.ppid() == one.process.pid}
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: one.ask("state")["starts"] == 2)
    one.process.kill()
    assert eventually(lambda: not world.processes())
