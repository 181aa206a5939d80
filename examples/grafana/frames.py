"""Data frames in Grafana's formats: Arrow in answers to queries, JSON in streams. A frame is a pyarrow.Table."""

import json
import math
from typing import Any

import pyarrow as pa

# Grafana's names for Arrow's types: in its front end, and in its frames. Add the types that you need.
_TYPES = {
    pa.timestamp("ns"): ("time", "time.Time"),
    pa.float64(): ("number", "float64"),
    pa.int64(): ("number", "int64"),
    pa.bool_(): ("boolean", "bool"),
    pa.string(): ("string", "string"),
}


def field(name: str, kind: pa.DataType, *, nullable: bool = True, **metadata: Any) -> pa.Field:
    """Return a field. metadata: `labels`, a dict of strings, and `config`, such as the unit."""
    return pa.field(name, kind, nullable, {key: json.dumps(value) for key, value in metadata.items()})


def frame(name: str, ref_id: str, columns: dict[pa.Field, list[Any]], **meta: Any) -> pa.Table:
    """Return a frame. meta: such as `type`, `channel`, `notices`, named as in Grafana's JSON. Times: in ns."""
    metadata = {"name": name, "refId": ref_id} | ({"meta": json.dumps(meta)} if meta else {})
    return pa.table(list(columns.values()), schema=pa.schema(list(columns), metadata))


def to_arrow(table: pa.Table) -> bytes:
    """Return the frame as a file in Arrow's format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def to_json(table: pa.Table, *, schema: bool = True) -> bytes:
    """Return the frame as JSON, without its schema if the receiver knows it. Times are cut to milliseconds."""
    columns = [_values(column) for column in table.columns]
    data: dict[str, Any] = {"values": [values for values, _ in columns]}
    if any(special for _, special in columns):
        data["entities"] = [special or None for _, special in columns]
    return json.dumps({"schema": _schema(table.schema), "data": data} if schema else {"data": data}).encode()


def _schema(schema: pa.Schema) -> dict[str, Any]:
    metadata: dict[str, Any] = {key.decode(): value.decode() for key, value in schema.metadata.items() if value}
    if "meta" in metadata:
        metadata["meta"] = json.loads(metadata["meta"])
    fields = []
    for one in schema:
        shown, kind = _TYPES[one.type]
        info = {"frame": kind} | ({"nullable": True} if one.nullable else {})
        others = {key.decode(): json.loads(value) for key, value in (one.metadata or {}).items()}
        fields.append({"name": one.name, "type": shown, "typeInfo": info, **others})
    return {**metadata, "fields": fields}


def _values(column: pa.ChunkedArray) -> tuple[list[Any], dict[str, list[int]]]:
    """Return a column's values, and the positions of values that JSON cannot express."""
    if pa.types.is_timestamp(column.type):
        return [ns if ns is None else ns // 1_000_000 for ns in column.cast(pa.int64()).to_pylist()], {}
    values = column.to_pylist()
    special: dict[str, list[int]] = {}
    for index, value in enumerate(values):
        if isinstance(value, float) and not math.isfinite(value):
            kind = "NaN" if math.isnan(value) else "Inf" if value > 0 else "NegInf"
            special.setdefault(kind, []).append(index)
            values[index] = None
    return values, special
