"""What an author can add to the server, as docs/guide.md shows: an interceptor, an option, compression."""

import re
import textwrap
from pathlib import Path

import kv
import pytest
import venvs
from harness import ROOT, CallError, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # pip may take long

SPANS = """\
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider, export
trace.set_tracer_provider(TracerProvider())
to_stderr = export.ConsoleSpanExporter(out=sys.stderr, formatter=lambda span: f"a span of {span.name}\\n")
trace.get_tracer_provider().add_span_processor(export.SimpleSpanProcessor(to_stderr))
"""

CLIENT = """\
import grpc, kv_pb2, kv_pb2_grpc, sys
with grpc.insecure_channel(sys.argv[1]) as channel:
    assert len(kv_pb2_grpc.KVStub(channel).Get(kv_pb2.GetRequest(key="k")).value) > 10_000
"""


@pytest.fixture(scope="module")
def python(programs: Path) -> Path:
    """The Python of a venv with OpenTelemetry."""
    python = venvs.make(programs / "telemetry")
    packages = ["opentelemetry-instrumentation-grpc", "opentelemetry-sdk"]
    venvs.install(python, "-c", ROOT / "constraints.txt", "-r", ROOT / "requirements.txt", *packages)
    return python


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_what_the_guide_adds(world: World, python: Path, kind: str) -> None:
    guide = (ROOT / "docs" / "guide.md").read_text()
    (lines,) = re.findall(r"^```python\n(from opentelemetry.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    compression = 'plugin.server_arguments["compression"] = grpc.Compression.Gzip'
    assert compression in guide
    original = ROOT / "plugin.py"
    if kind == "asyncio":
        original = ROOT / "examples" / "asyncio" / "plugin.py"
        assert "(With asyncio: `aio_server_interceptor`.)" in guide
        lines = lines.replace("server_interceptor", "aio_server_interceptor")

    def script(name: str, added: str) -> Path:
        text = original.read_text().replace("    server = grpc", f"{textwrap.indent(added, '    ')}    server = grpc")
        assert added.splitlines()[-1] in text
        (world.folder / name).write_text(text)
        return world.folder / name

    host = world.started(script("plugin.py", SPANS + lines), python=python, auto_mtls=True)
    kv.put(host, "k", b"v" * 20_000)
    assert kv.get(host, "k") == b"v" * 20_000 + kv.SUFFIX
    with pytest.raises(CallError, match="ResourceExhausted"):
        kv.put(host, "k", b"v" * (1 << 20))
    host.ask("ping")
    assert host.ask("kill")["seconds"] < 1.9
    printed = host.ask("stdio")["stderr"]
    spans = re.findall(rb"a span of /?([\w./]+)", printed)
    assert spans == [b"proto.KV/Put", b"proto.KV/Get"]

    compressing = script("compressing.py", f"{compression}\n")
    host = world.started(compressing)
    with pytest.raises(CallError, match="Decompressor is not installed"):
        kv.get(host, "k")
    assert host.ask("kill")["seconds"] < 1.9
    process = world.run(python, compressing, "--debug")
    assert process.stdout
    (address,) = re.findall(r'"String":"(.*?)"', process.stdout.readline().decode())
    env = {**world.env, "GRPC_TRACE": "compression", "GRPC_VERBOSITY": "debug"}
    client = world.run(python, "-c", CLIENT, address, env=env)
    _, err = client.communicate(timeout=60)
    assert client.returncode == 0, err
    assert 0 < int(re.findall(rb"DecompressMessage: len=(\d+)", err)[-1]) < 1_000
