"""A provider with one resource that keeps nothing, on PyPI's framework tf."""

from typing import Any

from tf.iface import CreateContext, DataSource, DeleteContext, Provider, ReadContext, Resource, State, UpdateContext
from tf.schema import Attribute, Schema
from tf.types import String
from tf.utils import Diagnostics


class Item(Resource):
    def __init__(self, provider: Provider) -> None:
        pass

    @classmethod
    def get_name(cls) -> str:
        return "item"

    @classmethod
    def get_schema(cls) -> Schema:
        return Schema([Attribute("name", String(), required=True), Attribute("id", String(), computed=True)])

    def create(self, ctx: CreateContext, planned: State) -> State:
        return {**planned, "id": f"item-{planned['name']}"}

    def read(self, ctx: ReadContext, current: State) -> State:
        return current

    def update(self, ctx: UpdateContext, current: State, planned: State) -> State:
        return {**planned, "id": current["id"]}

    def delete(self, ctx: DeleteContext, current: State) -> None:
        pass


class Items(Provider):
    def full_name(self) -> str:
        return "example.com/me/bench"

    def get_model_prefix(self) -> str:
        return "bench_"

    def get_provider_schema(self, diags: Diagnostics) -> Schema:
        return Schema([])

    def validate_config(self, diags: Diagnostics, config: dict[str, Any]) -> None:
        pass

    def configure_provider(self, diags: Diagnostics, config: dict[str, Any]) -> None:
        pass

    def get_data_sources(self) -> list[type[DataSource]]:
        return []

    def get_resources(self) -> list[type[Resource]]:
        return [Item]
