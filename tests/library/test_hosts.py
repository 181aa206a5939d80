"""docs/hosts.md and the examples agree with goplugin/hosts.py."""

import ast
import re

import pytest
from harness import ROOT

from goplugin.handshake import HandshakeConfig
from goplugin.hosts import HOSTS, Host


def test_each_row_of_the_document() -> None:
    table = (ROOT / "docs" / "hosts.md").read_text().split("| --- | --- | --- | --- | --- |\n")[1].split("\n\n")[0]
    said = {}
    for row in table.splitlines():
        _, names, cookies, versions, auto_mtls = row.strip("| ").split(" | ")
        for number, name in enumerate(re.findall("`(.*?)`", names)):
            each = re.findall("`(.*?)`", cookies)  # one for all names, or one for each
            key, _, value = each[number % len(each)].partition("=")
            handshake = HandshakeConfig(tuple(map(int, versions.split(", "))), key, value)
            said[name] = Host(handshake, {"on": True, "off": False}[auto_mtls])
    assert said == HOSTS


@pytest.mark.parametrize("name", sorted(HOSTS.keys() & {path.name for path in ROOT.glob("examples/*")}))
def test_each_example_of_a_host(name: str) -> None:
    plugin = (ROOT / "examples" / name / "plugin.py").read_text()
    (config,) = re.findall(r"HandshakeConfig(\(.*?\))", plugin, re.DOTALL)
    (call,) = [node for node in ast.walk(ast.parse(f"dict{config}")) if isinstance(node, ast.Call)]
    versions, *cookie = (ast.literal_eval(keyword.value) for keyword in call.keywords)
    assert cookie == list(HOSTS[name].handshake[1:])
    assert set(versions) <= set(HOSTS[name].handshake.protocol_versions)
