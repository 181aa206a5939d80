"""Python's logging, as the host's log shows it."""

import contextlib
import datetime
import json
import logging
import re
from typing import Any

import probe
import pytest
from authors import RIGHT
from harness import CallError, Host, World, eventually
from probe_plugin import Probe

from goplugin.log import hclog_line


def odd(world: World, case: str) -> dict[str, Any]:
    """The one record that the host logged for the probe's odd case, with the plugin's @module."""
    host = probe.start(world)
    probe.do(host, Probe.log_odd, case)
    probe.do(host, Probe.log, [logging.INFO, "after it", {}])
    assert host.logged("after it", **{"@module": "probe.module"})
    (record,) = (record for record in host.log() if record["@module"] in ("probe.odd", "py.warnings"))
    return record


@pytest.mark.parametrize(
    ("level", "name"),
    [(5, "trace"), (10, "debug"), (20, "info"), (30, "warn"), (40, "error"), (50, "error"), (25, "info")],
)
@pytest.mark.windows
def test_level_module_message_and_pairs(world: World, level: int, name: str) -> None:
    world.env["PLUGIN_LOG_LEVEL"] = "trace"
    host = probe.start(world)
    probe.do(host, Probe.log, [level, "hello wörld", {"count": 3, "who": "me", "list": [1, "two"], "nothing": None}])
    record = host.logged("hello wörld", **{"@module": "probe.module"})
    assert record
    assert record["@level"] == name
    assert {key: record[key] for key in ("count", "who", "list", "nothing")} == {
        "count": 3,
        "who": "me",
        "list": [1, "two"],
        "nothing": None,
    }


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("newlines", {"@message": "one\ntwo\r\nthree\u2028four"}),
        ("not utf-8", {"@message": "��", "raw": "b'\\xff'"}),
        ("no json", {"nan": "nan", "set": "{1}", "circle": "[[...]]"}),
        ("nested", {"deep": "{'a': [1, {'b': None}], ('tuple',): 1}"}),
        ("reserved", {"@message": "odd", "@level": "info", "_@level": 5, "_@message": [], "_@timestamp": 1}),
        ("keys", {"7": "seven"}),
        ("message", {"@message": "{'a': 1}"}),
        ("format", {"@message": "'%d of %s'", "args": "('three',)"}),
        ("raises", {"pair": "<Raises whose repr() raises ValueError>"}),
        ("numbers", {"id": str(2**53 + 1), "plain": 7}),
        ("json", {"@message": '{"@level": 5, "@message": {}}'}),
        ("many", {"@message": "odd", "pairs_cut": 10_000}),
    ],
)
def test_one_record_is_one_line(world: World, case: str, expected: dict[str, Any]) -> None:
    record = odd(world, case)
    assert {key: record[key] for key in expected} == expected
    assert record["@level"] == "info"


@pytest.mark.windows
def test_a_big_record_is_cut_and_says_so(world: World) -> None:
    record = odd(world, "big")
    assert record["@level"] == "info"
    for value, letter in ((record["@message"], "x"), (record["pair"], "y")):
        match = re.fullmatch(f"({letter}*)" + r"\.\.\. \((\d+) characters cut\)", value)
        assert match
        assert len(match[1]) + int(match[2]) == 1_000_000
    assert len(record["@message"]) + len(record["pair"]) > 40_000  # it cuts no more than needed


@pytest.mark.windows
def test_exceptions_and_stacks(world: World) -> None:
    record = odd(world, "exception raises")
    assert record["@level"] == "error"
    assert "RaisesToo" in record["stacktrace"]
    assert "log_odd" in odd(world, "stack")["stacktrace"]


@pytest.mark.windows
def test_warnings(world: World) -> None:
    record = odd(world, "warning")
    assert record["@level"] == "warn"
    assert "a warning of the plugin" in record["@message"]


@pytest.mark.windows
def test_uncaught_exceptions_everywhere(world: World) -> None:
    """In threads, destructors and main, even after the plugin has configured its logging."""
    host = probe.start(world)
    probe.do(host, Probe.dict_config)
    with pytest.raises(CallError, match="in a handler"):
        probe.do(host, Probe.fail, "in a handler")
    assert eventually(lambda: any("in a handler" in record.get("stacktrace", "") for record in host.log()))
    for method in (Probe.fail_in_thread, Probe.unraisable):
        text = f"{method.__name__} broke"
        probe.do(host, method, text)
        assert eventually(lambda: any(text in str(record.get("stacktrace")) for record in host.log()))  # noqa: B023
    world.env["PROBE_FAILS"] = "1"
    failing = probe.host(world)
    with pytest.raises(CallError):
        failing.ask("start")
    assert failing.logged("RuntimeError: it fails at import")
    world.env["PROBE_DOES_NOT_WAIT"] = world.env.pop("PROBE_FAILS")
    failing = probe.host(world)
    with contextlib.suppress(CallError):
        failing.ask("start")
    record = failing.logged("the plugin ends: RuntimeError", **{"@level": "error"})
    assert record
    assert "main fails" in record["stacktrace"]


@pytest.mark.parametrize(
    ("setting", "seen"),
    [("warn", [30, 40]), ("DEBUG", [10, 20, 30, 40]), ("off", []), ("", [20, 30, 40]), ("verbose", [20, 30, 40])],
)
def test_level_follows_the_environment(world: World, setting: str, seen: list[int]) -> None:
    world.env["PLUGIN_LOG_LEVEL"] = setting
    host = probe.start(world)
    for level in (5, 10, 20, 30, 40):
        probe.do(host, Probe.log, [level, f"record of level {level}", {}])
    host.ask("kill")
    text = "".join(record["@message"] for record in host.log())
    for level in (5, 10, 20, 30, 40):
        assert (f"record of level {level}" in text) == (level in seen)
    assert ("PLUGIN_LOG_LEVEL=verbose is not a level" in text) == (setting == "verbose")


def test_timestamps_have_six_digits() -> None:
    """isoformat() drops zero microseconds, and the host would then take the line for plain text."""
    for seconds in (0.0, 1.0, 1_700_000_000.0, 1_700_000_000.999_999_9, 1_700_000_000.000_001):
        record = logging.makeLogRecord({"msg": "m", "levelno": logging.INFO, "created": seconds})
        stamp = json.loads(hclog_line(record))["@timestamp"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stamp)
        parsed = datetime.datetime.fromisoformat(stamp.replace("Z", "+00:00"))
        assert abs(parsed.timestamp() - seconds) < 2e-6


@pytest.mark.parametrize("size", [65_000, 65_400, 65_536, 66_000, 400_000])
@pytest.mark.parametrize("text", ["x", "\n", "ü", "😀", '"'])
def test_no_line_is_longer_than_the_host_reads(text: str, size: int) -> None:
    fields = {"msg": text * size, "levelno": logging.INFO, "name": text * size, "pair": [text] * size}
    line = hclog_line(logging.makeLogRecord(fields))
    assert len(line) <= 64 * 1024
    assert line.count(b"\n") == 1
    assert json.loads(line)["@level"] == "info"


BEFORE = "plugin = goplugin.Plugin(HANDSHAKE)"


def configured(world: World, configuration: str) -> Host:
    """A plugin that configures logging before it makes its Plugin, and logs after it has printed the handshake line."""
    logs = "for level in (10, 20, 30, 40): logging.getLogger('a.library').log(level, 'level %s', level)"
    script = world.folder / "configured.py"
    text = RIGHT.replace(BEFORE, f"import logging\n{configuration}\n{BEFORE}")
    script.write_text(text.replace("plugin.wait()", f"{logs}\nplugin.wait()"))
    host = world.started(script)
    host.ask("kill")
    return host


def seen(host: Host) -> list[tuple[str, str]]:
    return [(record["@message"], record["@level"]) for record in host.log() if "level " in record["@message"]]


DICT_CONFIG = """import logging.config
handlers = {"host": {"class": "goplugin.HclogHandler"}}
logging.config.dictConfig({"version": 1, "handlers": handlers, "root": {"handlers": ["host"], "level": "INFO"}})
"""
ALL = [("level 10", "debug"), ("level 20", "info"), ("level 30", "warn"), ("level 40", "error")]


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        ("", ALL[1:]),
        ("logging.getLogger().setLevel(logging.ERROR)", ALL[3:]),
        ("logging.getLogger('a.library').setLevel(logging.DEBUG)", ALL),
        ("logging.basicConfig(level=logging.DEBUG)", ALL),
        ("logging.getLogger().setLevel(logging.WARNING)", ALL[2:]),
        (DICT_CONFIG, ALL[1:]),
        ("logging.basicConfig(level=logging.ERROR, format='%(asctime)s %(message)s')", ALL[3:]),
        ("logging.basicConfig(level='INFO', stream=sys.stdout)", ALL[1:]),
        ("logging.disable(logging.WARNING)", ALL[3:]),
    ],
)
def test_the_plugins_own_configuration_is_respected(
    world: World, configuration: str, expected: list[tuple[str, str]]
) -> None:
    """goplugin keeps the levels that the plugin has set, and logs nothing twice."""
    assert seen(configured(world, configuration)) == expected


def test_a_handler_of_the_plugins_own_stays(world: World) -> None:
    assert seen(configured(world, "logging.getLogger().addHandler(logging.FileHandler('own.log'))")) == ALL[1:]
    assert (world.folder / "own.log").read_text() == "level 20\nlevel 30\nlevel 40\n"


def test_libraries_do_not_flood_the_host(world: World) -> None:
    """One start and one call log only goplugin's debug lines, and nothing of grpc's."""
    host = probe.start(world)
    probe.do(host, Probe.echo, 1)
    host.ask("kill")
    lines = [record for record in host.log() if not record["@module"].startswith("host")]
    serves = world.serves  # names the version, so it differs between a copy and a newer goplugin
    assert [record["@message"] for record in lines] == [serves, "leaving: Shutdown"]
