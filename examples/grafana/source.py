"""The services that Grafana calls: health, queries, resources, live values and metrics."""

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import backend_pb2 as pb
import backend_pb2_grpc
import grpc
import prometheus_client
import pyarrow as pa
from api import API, APIError
from frames import field, frame, to_arrow, to_json

_log = logging.getLogger("sensors")  # its records reach Grafana's log with their level
_queries = prometheus_client.Counter("sensors_queries", "Queries for the values of a sensor.", ["status"])

LIVE = "live/"  # the channel ds/UID/live/SENSOR repeatedly sends the latest value
INTERVAL = 1.0  # seconds between two values
CHUNK = 1000  # rows of a frame, or lines of an export, per message
JSON = pb.DataFrameFormat.JSON


class DataSource(
    backend_pb2_grpc.DiagnosticsServicer,
    backend_pb2_grpc.DataServicer,
    backend_pb2_grpc.ResourceServicer,
    backend_pb2_grpc.StreamServicer,
):
    """The backend of a data source. One process serves all data sources of this kind, and many calls at once."""

    def CheckHealth(self, request: pb.CheckHealthRequest, context: grpc.ServicerContext) -> pb.CheckHealthResponse:
        """Tell whether the settings are right. Grafana calls this when the user clicks Save & test."""
        try:
            sensors = api_of(request).sensors()
        except APIError as error:
            _log.warning("not healthy", extra={"reason": str(error)})  # never the token
            return pb.CheckHealthResponse(status=pb.CheckHealthResponse.ERROR, message=str(error))
        details = json.dumps({"sensors": len(sensors)}).encode()
        message = f"It works: there are {len(sensors)} sensors"
        return pb.CheckHealthResponse(status=pb.CheckHealthResponse.OK, message=message, jsonDetails=details)

    def CollectMetrics(
        self, request: pb.CollectMetricsRequest, context: grpc.ServicerContext
    ) -> pb.CollectMetricsResponse:
        """Return this process's metrics, for Grafana's /metrics/plugins/ID."""
        metrics = pb.CollectMetricsResponse.Payload(prometheus=prometheus_client.generate_latest())
        return pb.CollectMetricsResponse(metrics=metrics)

    def QueryData(self, request: pb.QueryDataRequest, context: grpc.ServicerContext) -> pb.QueryDataResponse:
        """Answer the queries of a panel or of an alert rule. If one query fails, the others still work."""
        encode = to_json if request.format == JSON else to_arrow
        response = pb.QueryDataResponse()
        for query in request.queries:
            answer = response.responses[query.refId]
            answer.format = request.format
            try:
                answer.frames.append(encode(frame_of(request, query)))
                answer.status = 200
            except APIError as error:
                answer.error, answer.status, answer.errorSource = str(error), error.status, "downstream"
        return response

    def QueryChunkedData(
        self, request: pb.QueryChunkedDataRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.QueryChunkedDataResponse]:
        """Answer queries in pieces. Grafana calls this experimental."""
        for query in request.queries:
            try:
                table = frame_of(request, query)
            except APIError as error:
                yield pb.QueryChunkedDataResponse(refId=query.refId, error=str(error), status=error.status)
                continue
            for start in range(0, max(len(table), 1), CHUNK):
                piece = table.slice(start, CHUNK)
                data = to_json(piece, schema=not start) if request.format == JSON else to_arrow(piece)
                yield pb.QueryChunkedDataResponse(
                    refId=query.refId, frameId="values", frame=data, status=200, format=request.format
                )

    def CallResource(
        self, request: pb.CallResourceRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.CallResourceResponse]:
        """Answer the front end's HTTP requests, below /api/datasources/uid/UID/resources."""
        path, parameters = request.path.strip("/"), dict(parse_qsl(urlsplit(request.url).query))
        try:
            match request.method, path:
                case "GET", "sensors":
                    yield reply(200, api_of(request).sensors())
                case "GET", "export":
                    yield from export(api_of(request), parameters)
                case _, "sensors" | "export":
                    yield reply(405, {"error": f"{path} takes GET alone"}, Allow="GET")
                case _:
                    yield reply(404, {"error": f"there is no {path}"})
        except APIError as error:
            yield reply(error.status, {"error": str(error)})

    def SubscribeStream(
        self, request: pb.SubscribeStreamRequest, context: grpc.ServicerContext
    ) -> pb.SubscribeStreamResponse:
        """Tell whether a user may subscribe to a channel, and return the first value for the user."""
        try:
            latest = latest_of(request)
        except APIError as error:
            _log.warning("no such channel", extra={"channel": request.path, "reason": str(error)})
            return pb.SubscribeStreamResponse(status=pb.SubscribeStreamResponse.NOT_FOUND)
        return pb.SubscribeStreamResponse(status=pb.SubscribeStreamResponse.OK, data=latest)

    def RunStream(self, request: pb.RunStreamRequest, context: grpc.ServicerContext) -> Iterator[pb.StreamPacket]:
        """Send a channel's values. Grafana calls this once for all subscribers, and leaves with the last one."""
        left = threading.Event()
        if not context.add_callback(left.set):
            return
        while not left.wait(INTERVAL):
            try:
                yield pb.StreamPacket(data=latest_of(request))
            except APIError as error:
                _log.warning("no live value", extra={"channel": request.path, "reason": str(error)})

    def PublishStream(
        self, request: pb.PublishStreamRequest, context: grpc.ServicerContext
    ) -> pb.PublishStreamResponse:
        """Tell whether a user may publish in a channel, and return the message for the subscribers."""
        if not request.path.startswith(LIVE):
            return pb.PublishStreamResponse(status=pb.PublishStreamResponse.NOT_FOUND)
        if request.pluginContext.user.role != "Admin":
            return pb.PublishStreamResponse(status=pb.PublishStreamResponse.PERMISSION_DENIED)
        return pb.PublishStreamResponse(status=pb.PublishStreamResponse.OK, data=request.data)


def api_of(request: Any) -> API:
    """Return the API of the request's data source. APIError if the settings are wrong."""
    return API(request.pluginContext.dataSourceInstanceSettings)


def frame_of(request: Any, query: pb.DataQuery) -> pa.Table:
    """Return the values for a query. The front end's query editor makes the query's JSON."""
    try:
        api, sensor = api_of(request), json.loads(query.json or "{}").get("sensor")
        if not sensor:
            raise APIError(400, "Choose a sensor")
        found = api.sensor(str(sensor))
        rows = api.values(
            found["name"],
            start=query.timeRange.fromEpochMS,
            end=query.timeRange.toEpochMS,
            step=max(query.intervalMS, 1),
        )
    except APIError:
        _queries.labels("error").inc()
        raise
    _queries.labels("ok").inc()
    _log.debug("queried", extra={"sensor": found["name"], "values": len(rows)})
    uid = request.pluginContext.dataSourceInstanceSettings.uid
    return to_frame(found, query.refId, rows, channel=f"ds/{uid}/{LIVE}{found['name']}")


def latest_of(request: Any) -> bytes:
    """Return the latest value of a channel, as JSON. APIError if there is no such channel."""
    if not request.path.startswith(LIVE):
        raise APIError(404, f"there is no channel {request.path}")
    api = api_of(request)
    sensor = api.sensor(request.path.removeprefix(LIVE))
    return to_json(to_frame(sensor, "", api.values(sensor["name"])))


def to_frame(sensor: dict[str, str], ref_id: str, rows: list[list[Any]], **meta: str) -> pa.Table:
    """Return a sensor's values: [time in ms, value or None]. Grafana shows the field's labels in the legend."""
    time = field("time", pa.timestamp("ns"), nullable=False)
    labels, config = {"sensor": sensor["name"]}, {"unit": sensor["unit"]}
    value = field("value", pa.float64(), labels=labels, config=config)
    columns = {time: [ms * 1_000_000 for ms, _ in rows], value: [value for _, value in rows]}
    return frame(sensor["name"], ref_id, columns, type="timeseries-multi", typeVersion=[0, 1], **meta)


def export(api: API, parameters: dict[str, str]) -> Iterator[pb.CallResourceResponse]:
    """Send a sensor's values as CSV, in as many messages as it takes; only the first has a status and headers."""
    try:
        start, end, step = (int(parameters[key]) for key in ("start", "end", "step"))
        steps, name = range(start, end + 1, CHUNK * step), parameters["sensor"]
    except (KeyError, ValueError):
        raise APIError(400, "export takes sensor, and start, end and step in ms") from None
    api.sensor(name)
    headers = {"Content-Type": pb.StringList(values=["text/csv"])}
    yield pb.CallResourceResponse(code=200, headers=headers, body=b"time,value\n")
    for first in steps:
        try:
            rows = api.values(name, start=first, end=min(first + CHUNK * step - 1, end), step=step)
        except APIError as error:  # too late for a status: an error makes Grafana break off
            raise RuntimeError(f"the export of {name} is not complete: {error}") from None
        lines = "".join(f"{ms},{'' if value is None else value}\n" for ms, value in rows)
        yield pb.CallResourceResponse(body=lines.encode())


def reply(code: int, body: Any, **headers: str) -> pb.CallResourceResponse:
    """Return an HTTP answer with a JSON body."""
    headers = {"Content-Type": "application/json", **headers}
    lists = {name: pb.StringList(values=[value]) for name, value in headers.items()}
    return pb.CallResourceResponse(code=code, headers=lists, body=json.dumps(body).encode())
