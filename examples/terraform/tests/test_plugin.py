"""plugin.py, tested by a host in Python, without Go and Terraform: with the calls that Terraform makes."""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest
from provider import PROVIDER
from servicer import Servicer
from tf.gen import tfplugin_pb2 as pb
from tf.gen import tfplugin_pb2_grpc
from tf.types import Unknown
from tf.utils import read_dynamic_value, to_dynamic_value

import goplugin.testing
from plugin import HANDSHAKE

# "Unknown, and not null" and "unknown, but begins with n", as Terraform has them.
REFINED = [msgpack.ExtType(12, msgpack.packb({1: False})), msgpack.ExtType(12, msgpack.packb({2: "n"}))]
PLUGIN = Path(__file__).parent.parent / "plugin.py"


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Any]:
    """The provider, started and configured as Terraform does, with AutoMTLS; its stub."""
    command = [sys.executable, str(PLUGIN)]
    with goplugin.testing.start(command, HANDSHAKE, auto_mtls=True, cwd=tmp_path) as client:
        stub: Any = tfplugin_pb2_grpc.ProviderStub(client.channel)
        config = to_dynamic_value({"folder": str(tmp_path)})
        assert not stub.ConfigureProvider(pb.ConfigureProvider.Request(config=config)).diagnostics
        yield stub
    assert client.exit_code == 0


def apply(provider: Any, prior: dict[str, Any] | None, planned: dict[str, Any] | None) -> Any:
    """Plan a change, unless it is to remove the note, and apply it; the answer to that."""
    prior_state, state = to_dynamic_value(prior), to_dynamic_value(planned)
    if planned:
        plan = provider.PlanResourceChange(
            pb.PlanResourceChange.Request(
                type_name="notes_note", prior_state=prior_state, proposed_new_state=state, config=state
            )
        )
        assert not plan.diagnostics
        state = plan.planned_state
    return provider.ApplyResourceChange(
        pb.ApplyResourceChange.Request(type_name="notes_note", prior_state=prior_state, planned_state=state)
    )


def note(**given: Any) -> dict[str, Any]:
    return {"id": None, "name": "n", "text": "one", "size": None, **given}


def test_schema(provider: Any) -> None:
    schema = provider.GetProviderSchema(pb.GetProviderSchema.Request())
    assert set(schema.resource_schemas) == set(schema.data_source_schemas) == {"notes_note"}
    assert set(schema.functions) == {"slug"}


def test_create_update_and_delete(provider: Any, tmp_path: Path) -> None:
    state = read_dynamic_value(apply(provider, None, note()).new_state)
    assert state == {"id": "n", "name": "n", "text": "one", "size": 3}
    state = read_dynamic_value(apply(provider, state, {**state, "text": "three"}).new_state)
    assert state["size"] == 5
    assert (tmp_path / "n").read_text(encoding="utf-8") == "three"
    apply(provider, state, None)
    assert not (tmp_path / "n").exists()


def test_an_error_names_the_attribute(provider: Any, tmp_path: Path) -> None:
    (tmp_path / "n").write_text("not Terraform's", encoding="utf-8")
    (diagnostic,) = apply(provider, None, note()).diagnostics
    assert (diagnostic.summary, diagnostic.attribute.steps[0].attribute_name) == ("The note cannot be created", "name")
    assert (tmp_path / "n").read_text(encoding="utf-8") == "not Terraform's"


@pytest.mark.parametrize(
    ("name", "errors"), [("n", 0), ("../n", 1), (".n", 1), ("", 1), (None, 1), (Unknown, 0), *[(x, 0) for x in REFINED]]
)
def test_validate(provider: Any, name: Any, errors: int) -> None:
    request = pb.ValidateResourceConfig.Request(type_name="notes_note", config=to_dynamic_value(note(name=name)))
    assert len(provider.ValidateResourceConfig(request).diagnostics) == errors


@pytest.mark.parametrize("text", ["a\r\nb\rc\n", "ä \u2028 \U0001f40d", ""])
def test_what_is_read_is_what_was_written(provider: Any, tmp_path: Path, text: str) -> None:
    state = read_dynamic_value(apply(provider, None, note(text=text)).new_state)
    assert (state["text"], state["size"]) == (text, len(text))
    assert (tmp_path / "n").read_bytes() == text.encode()


@pytest.mark.parametrize("text", [Unknown, *REFINED])
def test_a_plan_with_unknown_values(provider: Any, text: Any) -> None:
    state = {"id": "n", "name": "n", "text": "one", "size": 3}
    proposed = {**state, "text": text}
    request = pb.PlanResourceChange.Request(
        type_name="notes_note", prior_state=to_dynamic_value(state), proposed_new_state=to_dynamic_value(proposed)
    )
    planned = provider.PlanResourceChange(request).planned_state
    assert read_dynamic_value(planned) == {**state, "text": Unknown, "size": Unknown}


@pytest.mark.parametrize("folder", [Unknown, *REFINED])
def test_the_folder_is_not_known_yet(provider: Any, folder: Any) -> None:
    request = pb.ConfigureProvider.Request(config=to_dynamic_value({"folder": folder}))
    assert not provider.ConfigureProvider(request).diagnostics
    state = to_dynamic_value({"id": "n", "name": "n", "text": "one", "size": 3})
    read = provider.ReadResource(pb.ReadResource.Request(type_name="notes_note", current_state=state))
    assert read.new_state == state
    assert [diagnostic.severity for diagnostic in read.diagnostics] == [pb.Diagnostic.WARNING]
    data = provider.ReadDataSource(pb.ReadDataSource.Request(type_name="notes_note", config=state))
    imported = provider.ImportResourceState(pb.ImportResourceState.Request(type_name="notes_note", id="n"))
    for answer in data, imported:
        assert [diagnostic.severity for diagnostic in answer.diagnostics] == [pb.Diagnostic.ERROR]


def test_null_where_a_value_is_required(provider: Any) -> None:
    request = pb.ValidateProviderConfig.Request(config=to_dynamic_value({"folder": None}))
    assert [error.summary for error in provider.ValidateProviderConfig(request).diagnostics] == ["folder is null"]
    given: dict[str, Any] = {"type_name": "notes_note", "config": to_dynamic_value(note(name=None, text=None))}
    resource = provider.ValidateResourceConfig(pb.ValidateResourceConfig.Request(**given))
    assert [error.summary for error in resource.diagnostics] == ["name is null", "text is null"]
    data = provider.ValidateDataResourceConfig(pb.ValidateDataResourceConfig.Request(**given))
    assert [error.summary for error in data.diagnostics] == ["name is null"]


def test_parallel_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of two notes whose names differ only in case, one is created, even if both calls come at the same time."""

    class SlowFolder(type(tmp_path)):  # type: ignore[misc]
        def iterdir(self) -> Iterator[Any]:
            names = list(super().iterdir())
            time.sleep(0.2)
            return iter(names)

    monkeypatch.setattr(PROVIDER, "folder", SlowFolder(tmp_path))
    states = [to_dynamic_value(note(name=name)) for name in ("n", "N")]
    requests = [pb.ApplyResourceChange.Request(type_name="notes_note", planned_state=state) for state in states]
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(lambda request: Servicer(PROVIDER).ApplyResourceChange(request, None), requests))
    assert sorted(len(answer.diagnostics) for answer in answers) == [0, 1]


def test_a_state_of_an_older_provider(provider: Any) -> None:
    """What it lacks is null; what it has too much is gone."""
    raw = pb.RawState(json=json.dumps({"id": "n", "name": "n", "text": "one", "colour": "red"}).encode())
    request = pb.UpgradeResourceState.Request(type_name="notes_note", version=1, raw_state=raw)
    state = read_dynamic_value(provider.UpgradeResourceState(request).upgraded_state)
    assert state == {"id": "n", "name": "n", "text": "one", "size": None}


def test_a_state_that_lacks_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terraform keeps the rest: the note is there."""
    (resource,) = PROVIDER.get_resources()
    monkeypatch.setattr(resource, "create", lambda self, ctx, planned: {"id": "n", "name": "n"})
    request = pb.ApplyResourceChange.Request(type_name="notes_note", planned_state=to_dynamic_value(note()))
    answer = Servicer(PROVIDER).ApplyResourceChange(request, None)
    assert read_dynamic_value(answer.new_state) == {"id": "n", "name": "n", "text": None, "size": None}
    (error,) = answer.diagnostics
    assert (error.summary, error.detail) == (
        "The state of a notes_note is not complete",
        "It lacks size, text. This is a bug of the provider.",
    )


def test_import(provider: Any, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("text", encoding="utf-8")
    answer = provider.ImportResourceState(pb.ImportResourceState.Request(type_name="notes_note", id="old"))
    assert read_dynamic_value(answer.imported_resources[0].state)["size"] == 4
    answer = provider.ImportResourceState(pb.ImportResourceState.Request(type_name="notes_note", id="nothing"))
    assert [diagnostic.summary for diagnostic in answer.diagnostics] == ["There is no such note"]


def test_function(provider: Any) -> None:
    request = pb.CallFunction.Request(name="slug", arguments=[to_dynamic_value("Hello, World")])
    assert read_dynamic_value(provider.CallFunction(request).result) == "hello-world"
