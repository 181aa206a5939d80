"""plugin.py, tested by a host in Python, without Go and Terraform: with the calls that Terraform makes."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest
from example.server import TOKEN, Handler, Server
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


class Busy(Handler):
    """The API, which answers only what `refusals` does not."""

    refusals: list[int]  # HTTP statuses, the last one first

    def answer(self, path: str, given: dict[str, str]) -> tuple[int, Any]:
        return (self.refusals.pop(), "no") if self.refusals else super().answer(path, given)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The API."""
    monkeypatch.setattr(Busy, "refusals", [], raising=False)
    with Server(0) as server:
        server.RequestHandlerClass = Busy
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def provider(tmp_path: Path, server: Server) -> Iterator[Any]:
    """The provider, started and configured as Terraform does, with AutoMTLS; its stub."""
    command = [sys.executable, str(PLUGIN)]
    with goplugin.testing.start(command, HANDSHAKE, auto_mtls=True, cwd=tmp_path) as client:
        stub: Any = tfplugin_pb2_grpc.ProviderStub(client.channel)
        assert not configure(stub, url=server.url).diagnostics
        yield stub
    assert client.exit_code == 0


def configure(provider: Any, **given: Any) -> Any:
    config = {"url": None, "token": TOKEN, "timeout": 10, **given}
    return provider.ConfigureProvider(pb.ConfigureProvider.Request(config=to_dynamic_value(config)))


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
    assert set(schema.resource_schemas) == {"notes_note"}
    assert set(schema.data_source_schemas) == {"notes_note", "notes_notes"}
    assert set(schema.functions) == {"slug"}


def test_create_update_and_delete(provider: Any, server: Server) -> None:
    state = read_dynamic_value(apply(provider, None, note()).new_state)
    assert state == {"id": "n", "name": "n", "text": "one", "size": 3}
    state = read_dynamic_value(apply(provider, state, {**state, "text": "three"}).new_state)
    assert state["size"] == 5
    assert server.notes == {"/notes/n": "three"}
    for _ in range(2):
        assert not apply(provider, state, None).diagnostics  # the second time it is gone already
        assert not server.notes


def test_an_error_names_the_attribute(provider: Any, server: Server) -> None:
    server.notes["/notes/n"] = "not Terraform's"
    (diagnostic,) = apply(provider, None, note()).diagnostics
    assert (diagnostic.summary, diagnostic.attribute.steps[0].attribute_name) == ("The note was not created", "name")
    assert diagnostic.detail == f'POST {server.url} was answered with 409 Conflict: "n exists"'
    assert server.notes == {"/notes/n": "not Terraform's"}


@pytest.mark.parametrize(
    ("name", "errors"), [("n", 0), ("../n", 1), (".n", 1), ("", 1), (None, 1), (Unknown, 0), *[(x, 0) for x in REFINED]]
)
def test_validate(provider: Any, name: Any, errors: int) -> None:
    request = pb.ValidateResourceConfig.Request(type_name="notes_note", config=to_dynamic_value(note(name=name)))
    assert len(provider.ValidateResourceConfig(request).diagnostics) == errors


@pytest.mark.parametrize("text", ["a\r\nb\rc\n", "ä \u2028 \U0001f40d", ""])
def test_what_is_read_is_what_was_written(provider: Any, server: Server, text: str) -> None:
    state = read_dynamic_value(apply(provider, None, note(text=text)).new_state)
    assert (state["text"], state["size"]) == (text, len(text))
    assert server.notes == {"/notes/n": text}


@pytest.mark.parametrize("text", [Unknown, *REFINED])
def test_a_plan_with_unknown_values(provider: Any, text: Any) -> None:
    state = {"id": "n", "name": "n", "text": "one", "size": 3}
    proposed = {**state, "text": text}
    request = pb.PlanResourceChange.Request(
        type_name="notes_note", prior_state=to_dynamic_value(state), proposed_new_state=to_dynamic_value(proposed)
    )
    planned = provider.PlanResourceChange(request).planned_state
    assert read_dynamic_value(planned) == {**state, "text": Unknown, "size": Unknown}


@pytest.mark.parametrize("url", [Unknown, *REFINED])
def test_the_url_is_not_known_yet(provider: Any, url: Any) -> None:
    assert not configure(provider, url=url).diagnostics
    state = to_dynamic_value({"id": "n", "name": "n", "text": "one", "size": 3})
    read = provider.ReadResource(pb.ReadResource.Request(type_name="notes_note", current_state=state))
    assert read.new_state == state
    assert [diagnostic.severity for diagnostic in read.diagnostics] == [pb.Diagnostic.WARNING]
    data = provider.ReadDataSource(pb.ReadDataSource.Request(type_name="notes_note", config=state))
    imported = provider.ImportResourceState(pb.ImportResourceState.Request(type_name="notes_note", id="n"))
    for answer in data, imported:
        assert [diagnostic.severity for diagnostic in answer.diagnostics] == [pb.Diagnostic.ERROR]


def test_null_where_a_value_is_required(provider: Any) -> None:
    request = pb.ValidateProviderConfig.Request(config=to_dynamic_value({"url": None}))
    assert [error.summary for error in provider.ValidateProviderConfig(request).diagnostics] == ["url is null"]
    given: dict[str, Any] = {"type_name": "notes_note", "config": to_dynamic_value(note(name=None, text=None))}
    resource = provider.ValidateResourceConfig(pb.ValidateResourceConfig.Request(**given))
    assert [error.summary for error in resource.diagnostics] == ["name is null", "text is null"]
    data = provider.ValidateDataResourceConfig(pb.ValidateDataResourceConfig.Request(**given))
    assert [error.summary for error in data.diagnostics] == ["name is null"]


def test_parallel_calls(provider: Any, server: Server) -> None:
    """A note is created once, even if ten calls come at the same time."""
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(lambda _: apply(provider, None, note()), range(10)))
    assert sorted(len(answer.diagnostics) for answer in answers) == [0, *[1] * 9]
    assert server.notes == {"/notes/n": "one"}


@pytest.mark.parametrize("method", ["create", "read", "delete"])
def test_what_a_busy_api_refuses_is_tried_again(provider: Any, method: str) -> None:
    """After 429 it says when: Retry-After."""
    state = read_dynamic_value(apply(provider, None, note()).new_state)
    Busy.refusals[:] = [503, 429]
    if method == "read":
        request = pb.ReadResource.Request(type_name="notes_note", current_state=to_dynamic_value(state))
        assert read_dynamic_value(provider.ReadResource(request).new_state) == state
    else:
        assert not apply(
            *((provider, None, note(name="m")) if method == "create" else (provider, state, None))
        ).diagnostics
    assert not Busy.refusals


def test_the_timeout(provider: Any, server: Server) -> None:
    """It is for a call with all its tries."""
    configure(provider, url=server.url, timeout=3)
    Busy.refusals[:] = [429] * 10
    (error,) = apply(provider, None, note()).diagnostics
    assert error.detail.endswith('Too Many Requests: "no" The timeout is 3 s.')
    assert len(Busy.refusals) >= 7  # each waits for a second


def test_a_call_that_waits_is_stopped(provider: Any, server: Server) -> None:
    """After Ctrl-C. The next apply goes on, if Terraform has the same process."""
    configure(provider, url=server.url, timeout=60)
    Busy.refusals[:] = [429] * 100
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(apply, provider, None, note())
        while len(Busy.refusals) == 100:
            time.sleep(0.01)
        provider.StopProvider(pb.StopProvider.Request())
        (error,) = answer.result().diagnostics
    assert error.detail == f"POST {server.url}: told to stop while the API was busy; it did nothing."
    Busy.refusals[:] = [503]
    configure(provider, url=server.url)
    assert not apply(provider, None, note()).diagnostics


def test_the_token(provider: Any, server: Server) -> None:
    schema = provider.GetProviderSchema(pb.GetProviderSchema.Request()).provider
    assert [attribute.name for attribute in schema.block.attributes if attribute.sensitive] == ["token"]
    configure(provider, url=server.url, token="wrong")  # noqa: S106
    (error,) = apply(provider, None, note()).diagnostics
    assert error.detail == f'POST {server.url} was answered with 401 Unauthorized: "the token is wrong"'
    (error,) = configure(provider, url=server.url, token=None).diagnostics
    assert error.summary == "There is no token"


def test_a_list_in_pages(provider: Any, server: Server) -> None:
    names = [f"n{number:03}" for number in range(250)]
    server.notes.update({f"/notes/{name}": "" for name in [*names, "other"]})
    config = to_dynamic_value({"prefix": "n", "names": None})
    request = pb.ReadDataSource.Request(type_name="notes_notes", config=config)
    assert read_dynamic_value(provider.ReadDataSource(request).state) == {"prefix": "n", "names": names}


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


def test_import(provider: Any, server: Server) -> None:
    server.notes["/notes/old"] = "text"
    answer = provider.ImportResourceState(pb.ImportResourceState.Request(type_name="notes_note", id="old"))
    assert read_dynamic_value(answer.imported_resources[0].state)["size"] == 4
    answer = provider.ImportResourceState(pb.ImportResourceState.Request(type_name="notes_note", id="nothing"))
    assert [diagnostic.summary for diagnostic in answer.diagnostics] == ["There is no such note"]


def test_function(provider: Any) -> None:
    request = pb.CallFunction.Request(name="slug", arguments=[to_dynamic_value("Hello, World")])
    assert read_dynamic_value(provider.CallFunction(request).result) == "hello-world"
