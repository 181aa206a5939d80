"""tf's ProviderServicer, with what Terraform's own frameworks in Go do for a provider and tf 1.2 does not.

It is the same for all providers. tests/test_plugin.py shows its purpose.
"""
# ruff: noqa: D102 Terraform defines the calls

import threading
from typing import Any

import tf.utils
from tf.gen import tfplugin_pb2 as pb
from tf.provider import ProviderServicer
from tf.schema import Block, Schema
from tf.types import Set, Unknown
from tf.utils import Diagnostics, read_dynamic_value, to_dynamic_value

# Terraform sends most unknown values with what it knows about them, such as a prefix, as msgpack's extension 12. tf
# turns only the others, extension 0, into Unknown, and passes an ExtType to the provider. All calls read values here.
tf.utils._msgpack_ext_hook = lambda code, data: Unknown

# If a known set becomes unknown, tf would iterate over Unknown.
_equal = Set.semantically_equal
Set.semantically_equal = lambda self, a, b: a is b or (Unknown not in (a, b) and _equal(self, a, b))


# Set after Ctrl-C. Terraform then waits for the handlers that run, so a waiting handler must wait for this, too.
STOPPING = threading.Event()


class Servicer(ProviderServicer):
    """Refuses null for a required attribute, and names the resource whose state lacks an attribute."""

    def ConfigureProvider(self, request: Any, context: Any) -> Any:
        STOPPING.clear()  # with --debug, an earlier apply may have set it
        return super().ConfigureProvider(request, context)

    def StopProvider(self, request: Any, context: Any) -> Any:
        """Stop the handlers. tf does nothing here: its own runner stops the server, and running creates with it."""
        STOPPING.set()
        return super().StopProvider(request, context)

    def ValidateProviderConfig(self, request: Any, context: Any) -> Any:
        nulls = _nulls(self.app.get_provider_schema(Diagnostics()), read_dynamic_value(request.config))
        answer = pb.ValidateProviderConfig.Response(diagnostics=nulls)
        return answer if nulls else super().ValidateProviderConfig(request, context)

    def ValidateResourceConfig(self, request: Any, context: Any) -> Any:
        nulls = _nulls(self._get_res_cls(request.type_name).get_schema(), read_dynamic_value(request.config))
        answer = pb.ValidateResourceConfig.Response(diagnostics=nulls)
        return answer if nulls else super().ValidateResourceConfig(request, context)

    def ValidateDataResourceConfig(self, request: Any, context: Any) -> Any:
        nulls = _nulls(self._get_ds_cls(request.type_name).get_schema(), read_dynamic_value(request.config))
        answer = pb.ValidateDataResourceConfig.Response(diagnostics=nulls)
        return answer if nulls else super().ValidateDataResourceConfig(request, context)

    def UpgradeResourceState(self, request: Any, context: Any) -> Any:
        """Fit an older provider's state to the schema: new attributes become null, removed ones are dropped."""
        answer = super().UpgradeResourceState(request, context)
        if state := read_dynamic_value(answer.upgraded_state):
            empty = _empty(self._get_res_cls(request.type_name).get_schema())
            answer.upgraded_state.CopyFrom(to_dynamic_value({key: state.get(key, empty[key]) for key in empty}))
        return answer

    def ReadResource(self, request: Any, context: Any) -> Any:
        answer = super().ReadResource(request, context)
        return self._complete(request.type_name, answer.new_state, answer)

    def PlanResourceChange(self, request: Any, context: Any) -> Any:
        answer = super().PlanResourceChange(request, context)
        return self._complete(request.type_name, answer.planned_state, answer)

    def ApplyResourceChange(self, request: Any, context: Any) -> Any:
        answer = super().ApplyResourceChange(request, context)
        return self._complete(request.type_name, answer.new_state, answer)

    def ImportResourceState(self, request: Any, context: Any) -> Any:
        answer = super().ImportResourceState(request, context)
        for imported in answer.imported_resources:
            self._complete(request.type_name, imported.state, answer)
        return answer

    def ReadDataSource(self, request: Any, context: Any) -> Any:
        answer = super().ReadDataSource(request, context)
        return self._complete(request.type_name, answer.state, answer, self._get_ds_cls)

    def _complete(self, type_name: str, value: pb.DynamicValue, answer: Any, get_class: Any = None) -> Any:
        """If the state lacks attributes, set them to null, and add an error to the answer.

        Terraform's own error, "an object with 4 attributes is required (3 given)", names no resource, and Terraform
        then forgets what create() has made. If the answer has an error, Terraform keeps the state.
        """
        state = read_dynamic_value(value)
        empty = _empty((get_class or self._get_res_cls)(type_name).get_schema())
        if state and (lacking := empty.keys() - state):
            value.CopyFrom(to_dynamic_value({**empty, **state}))
            diags = Diagnostics()
            detail = f"It lacks {', '.join(sorted(lacking))}. This is a bug of the provider."
            diags.add_error(f"The state of a {type_name} is not complete", detail)
            answer.diagnostics.extend(diags.to_pb())
        return answer


def _empty(schema: Schema) -> dict[str, Any]:
    """Return a state in which all attributes are null and all blocks are empty."""
    attributes = {attribute.name: None for attribute in schema.attributes}
    return attributes | {block.type_name: [] for block in schema.block_types}


def _nulls(schema: Schema | Block, config: dict[str, Any], block: str = "") -> list[pb.Diagnostic]:
    """Return an error for each required attribute that is null. Terraform accepts `name = null`."""
    diags = Diagnostics()
    for attribute in schema.attributes:
        if attribute.required and config.get(attribute.name) is None:
            detail = "It is required. If it comes from a variable or another resource, that is null."
            diags.add_error(f"{attribute.name} is null", detail, [block or attribute.name])
    found: list[pb.Diagnostic] = diags.to_pb()
    for nested in schema.block_types:
        values = config.get(nested.type_name)
        for value in values if isinstance(values, list) else []:  # it may be Unknown
            found += _nulls(nested.block, value, block or nested.type_name)
    return found
