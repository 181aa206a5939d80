"""plugin.py, tested by a host in Python, without Go and Grafana: with the calls that Grafana makes."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import backend_pb2 as pb
import backend_pb2_grpc
import grpc
import pyarrow as pa
import pytest
from example.sensors import TOKEN, Handler
from frames import field, frame, to_json

import goplugin.testing
from plugin import HANDSHAKE

PLUGIN = Path(__file__).parent.parent / "plugin.py"
RANGE = pb.TimeRange(fromEpochMS=0, toEpochMS=9000)


@pytest.fixture
def url() -> Iterator[str]:
    """Where the API is."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[goplugin.testing.Client]:
    """The plugin, started as Grafana does."""
    with goplugin.testing.start([sys.executable, str(PLUGIN)], HANDSHAKE, cwd=tmp_path) as client:
        yield client
    assert client.exit_code == 0


def context(url: str, token: str = TOKEN, role: str = "Viewer", **settings: Any) -> pb.PluginContext:
    """What comes with each call: the data source's settings, and the user."""
    source = pb.DataSourceInstanceSettings(
        uid="u1", url=url, jsonData=json.dumps(settings).encode(), decryptedSecureJsonData={"token": token}
    )
    return pb.PluginContext(dataSourceInstanceSettings=source, user=pb.User(role=role))


def query(ref_id: str, **asked: Any) -> pb.DataQuery:
    return pb.DataQuery(refId=ref_id, timeRange=RANGE, intervalMS=1000, json=json.dumps(asked).encode())


def ask(client: goplugin.testing.Client, url: str, *queries: pb.DataQuery) -> dict[str, pb.DataResponse]:
    stub: Any = backend_pb2_grpc.DataStub(client.channel)
    request = pb.QueryDataRequest(pluginContext=context(url), queries=queries)
    return dict(stub.QueryData(request).responses)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "It works: there are 2 sensors"),
        ({"token": "wrong"}, "answered 401 Unauthorized"),
        ({"token": ""}, "Set the URL and the token in the data source's settings"),
        ({"url": ""}, "Set the URL and the token in the data source's settings"),
        ({"url": "file:///etc/passwd"}, "Set the URL and the token in the data source's settings"),
        ({"timeout": "soon"}, "timeout in the data source's settings must be a number of seconds"),
        ({"url": "http://127.0.0.1:1"}, "http://127.0.0.1:1 does not work: "),
    ],
)
def test_health(client: goplugin.testing.Client, url: str, settings: dict[str, Any], said: str) -> None:
    stub: Any = backend_pb2_grpc.DiagnosticsStub(client.channel)
    answer = stub.CheckHealth(pb.CheckHealthRequest(pluginContext=context(**{"url": url, **settings})))
    assert said in answer.message
    assert answer.status == (answer.OK if "works:" in said else answer.ERROR)


def test_a_frame(client: goplugin.testing.Client, url: str) -> None:
    (encoded,) = ask(client, url, query("A", sensor="kitchen"))["A"].frames
    table = pa.ipc.open_file(encoded).read_all()
    assert table.schema.metadata[b"refId"] == b"A"
    assert json.loads(table.schema.metadata[b"meta"])["channel"] == "ds/u1/live/kitchen"
    assert json.loads(table.schema.field("value").metadata[b"labels"]) == {"sensor": "kitchen"}
    assert json.loads(table.schema.field("value").metadata[b"config"]) == {"unit": "celsius"}
    assert table.column("time").cast(pa.int64()).to_pylist() == [second * 10**9 for second in range(10)]
    assert table.column("value").to_pylist() == [7, 7.5, 8, 8.5, 9, 9.5, 10, None, 11, 11.5]


def test_a_query_fails_alone(client: goplugin.testing.Client, url: str) -> None:
    answers = ask(client, url, query("A", sensor="kitchen"), query("B", sensor="attic"), query("C"))
    assert {ref: (one.status, one.error) for ref, one in answers.items()} == {
        "A": (200, ""),
        "B": (404, "There is no sensor 'attic'"),
        "C": (400, "Choose a sensor"),
    }
    assert answers["B"].errorSource == "downstream"


def test_resources(client: goplugin.testing.Client, url: str) -> None:
    stub: Any = backend_pb2_grpc.ResourceStub(client.channel)

    def call(method: str, target: str) -> list[pb.CallResourceResponse]:
        path = target.partition("?")[0]
        request = pb.CallResourceRequest(pluginContext=context(url), method=method, path=path, url=target)
        return list(stub.CallResource(request))

    (sensors,) = call("GET", "sensors")
    assert [one["name"] for one in json.loads(sensors.body)] == ["cellar", "kitchen"]
    head, *rest = call("GET", "export?sensor=kitchen&start=0&end=2500000&step=1000")
    assert (head.code, *head.headers["Content-Type"].values) == (200, "text/csv")
    assert [one.body.count(b"\n") for one in rest] == [1000, 1000, 501]
    assert rest[0].body.splitlines()[6:8] == [b"6000,10.0", b"7000,"]
    assert [call(*one)[0].code for one in (("GET", "export"), ("POST", "sensors"), ("GET", "x"))] == [400, 405, 404]


def test_a_live_value_ends_with_its_caller(client: goplugin.testing.Client, url: str) -> None:
    stub: Any = backend_pb2_grpc.StreamStub(client.channel)
    stream = stub.RunStream(pb.RunStreamRequest(pluginContext=context(url), path="live/kitchen"))
    packet = json.loads(next(stream).data)
    assert packet["schema"]["fields"][1]["labels"] == {"sensor": "kitchen"}
    assert abs(packet["data"]["values"][0][0] - time.time() * 1000) < 60_000
    next(stream)
    stream.cancel()
    with pytest.raises(grpc.RpcError):
        next(stream)


def test_who_may_subscribe_and_publish(client: goplugin.testing.Client, url: str) -> None:
    stub: Any = backend_pb2_grpc.StreamStub(client.channel)
    yes, no, refused = (pb.PublishStreamResponse.Status.Value(x) for x in ("OK", "NOT_FOUND", "PERMISSION_DENIED"))
    for path, status in {"live/kitchen": yes, "live/attic": no, "x": no}.items():
        answer = stub.SubscribeStream(pb.SubscribeStreamRequest(pluginContext=context(url), path=path))
        assert (answer.status, bool(answer.data)) == (status, status == yes)
    for path, role, status in [("live/x", "Admin", yes), ("live/x", "Viewer", refused), ("x", "Admin", no)]:
        request = pb.PublishStreamRequest(pluginContext=context(url, role=role), path=path, data=b"{}")
        assert stub.PublishStream(request).status == status


def test_metrics(client: goplugin.testing.Client, url: str) -> None:
    ask(client, url, query("A", sensor="kitchen"), query("B"))
    stub: Any = backend_pb2_grpc.DiagnosticsStub(client.channel)
    lines = stub.CollectMetrics(pb.CollectMetricsRequest()).metrics.prometheus.decode().splitlines()
    assert {'sensors_queries_total{status="ok"} 1.0', 'sensors_queries_total{status="error"} 1.0'} <= set(lines)


def test_numbers_that_json_does_not_have() -> None:
    value = field("value", pa.float64())
    table = frame("", "", {value: [1.5, float("nan"), None, float("-inf"), float("inf")]})
    assert json.loads(to_json(table, schema=False)) == {
        "data": {"values": [[1.5, None, None, None, None]], "entities": [{"NaN": [1], "NegInf": [3], "Inf": [4]}]}
    }
