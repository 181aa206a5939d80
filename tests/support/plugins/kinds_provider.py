# mypy: ignore-errors
"""A provider with attributes and blocks of all kinds, in place of provider.py in examples/terraform.

Where tf lacks a feature, it does what README.md there advises.
"""

import json
from pathlib import Path

import msgpack
from tf import blocks, iface, schema, types
from tf.gen import tfplugin_pb2 as pb

from notes_servicer import STOPPING


def refuse_ext_types(value: object) -> None:
    assert not isinstance(value, msgpack.ExtType)
    for part in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        refuse_ext_types(part)


class ListNestedBlock(blocks.SetNestedBlock):
    def to_pb(self) -> pb.Schema.NestedBlock:
        block = super().to_pb()
        block.nesting = pb.Schema.NestedBlock.LIST
        return block

    def semantically_equal(self, a: object, b: object) -> bool:
        return a == b


class All(iface.Resource):
    def __init__(self, provider: iface.Provider) -> None:
        pass

    @classmethod
    def get_name(cls) -> str:
        return "all"

    @classmethod
    def get_schema(cls) -> schema.Schema:
        kinds = {
            "string": types.String(),
            "number": types.Number(),
            "bool": types.Bool(),
            "json": types.NormalizedJson(),
            "list": types.List(types.String()),
            "set": types.Set(types.String()),
            "map": types.Map(types.String()),
            "lists": types.List(types.List(types.String())),
        }
        attributes = [schema.Attribute(name, kind, optional=True) for name, kind in kinds.items()]
        attributes += [
            schema.Attribute("id", types.String(), computed=True),
            schema.Attribute("python_type", types.String(), computed=True),
            schema.Attribute("default", types.String(), computed=True, default="known before"),
            schema.Attribute("waits", types.Bool(), optional=True),
        ]
        block = schema.Block(
            [
                schema.Attribute("needed", types.String(), required=True),
                schema.Attribute("list", types.List(types.String()), optional=True),
            ]
        )
        nested = [blocks.SetNestedBlock("in_set", block), ListNestedBlock("in_list", block)]
        return schema.Schema(attributes, version=1, block_types=nested)

    def validate(self, diags: object, type_name: str, config: iface.Config) -> None:
        super().validate(diags, type_name, config)
        refuse_ext_types(config)

    def plan(self, ctx: object, current: iface.State, planned: iface.State) -> iface.State:
        refuse_ext_types(planned)
        return planned

    def create(self, ctx: object, planned: iface.State) -> iface.State | None:
        if planned["waits"]:
            Path("waits").touch()
            if STOPPING.wait(60):
                ctx.diagnostics.add_error("Told to stop")
                return None
        return {**planned, "id": "1", "python_type": type(planned["number"]).__name__}

    def read(self, ctx: object, current: iface.State) -> iface.State:
        return current

    def update(self, ctx: object, current: iface.State, planned: iface.State) -> iface.State:
        return planned

    def delete(self, ctx: object, current: iface.State) -> None:
        pass


class Json(iface.DataSource):
    def __init__(self, provider: iface.Provider) -> None:
        pass

    @classmethod
    def get_name(cls) -> str:
        return "json"

    @classmethod
    def get_schema(cls) -> schema.Schema:
        return schema.Schema([schema.Attribute("json", types.NormalizedJson(), computed=True)])

    def read(self, ctx: object, config: iface.Config) -> iface.State:
        return {"json": json.dumps({"key": "value"})}


class Kinds(iface.Provider):
    def full_name(self) -> str:
        return "example.com/me/kinds"

    def get_model_prefix(self) -> str:
        return "kinds_"

    def get_provider_schema(self, diags: object) -> schema.Schema:
        return schema.Schema([])

    def validate_config(self, diags: object, config: iface.Config) -> None:
        pass

    def configure_provider(self, diags: object, config: iface.Config) -> None:
        pass

    def get_resources(self) -> list[type[iface.Resource]]:
        return [All]

    def get_data_sources(self) -> list[type[iface.DataSource]]:
        return [Json]


PROVIDER = Kinds()
