"""The provider: a resource, two data sources and a function, made with PyPI's framework tf. Replace it with yours."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from api import API, APIError
from servicer import STOPPING
from tf.function import CallContext, Function, FunctionSignature, Parameter, Return
from tf.iface import (
    Config,
    CreateContext,
    DataSource,
    DeleteContext,
    ImportContext,
    PlanContext,
    Provider,
    ReadContext,
    ReadDataContext,
    Resource,
    State,
    UpdateContext,
)
from tf.schema import Attribute, Schema
from tf.types import List, Number, String, Unknown
from tf.utils import Diagnostics

_log = logging.getLogger(__name__)  # its records reach Terraform's log (TF_LOG) with their level


@contextmanager
def reporting(diags: Diagnostics, summary: str, path: list[str] | None = None) -> Iterator[None]:
    """Report an APIError to the user. path: the attribute that caused it."""
    try:
        yield
    except APIError as error:
        diags.add_error(summary, str(error), path=path)


def state(name: str, text: str) -> State:
    """Return a note in the form of Terraform's state."""
    return {"id": name, "name": name, "text": text, "size": len(text)}


class Notes(Provider):
    """`provider "notes" { url = "..." }`. Handlers run in parallel: to change anything here, they would need a lock."""

    configured: API | None = None  # None while the provider block has values that only apply makes known

    def full_name(self) -> str:
        """Return the `source` in required_providers."""
        return "example.com/me/notes"

    def get_model_prefix(self) -> str:
        """Return the prefix of all names of resources and data sources."""
        return "notes_"

    def get_provider_schema(self, diags: Diagnostics) -> Schema:
        """Return the attributes of the provider block. Terraform does not show sensitive ones."""
        return Schema(
            [
                Attribute("url", String(), "Where the notes are.", required=True),
                Attribute("token", String(), "The API's token; or set NOTES_TOKEN.", optional=True, sensitive=True),
                Attribute("timeout", Number(), "Seconds for a call, with all its tries: 60.", optional=True),
            ]
        )

    def validate_config(self, diags: Diagnostics, config: Config) -> None:
        """Check the provider block. Values that come from other resources may be Unknown."""
        if config["url"] is not Unknown and not config["url"].startswith(("http://", "https://")):
            diags.add_error("This is no URL of an API", "It begins with http:// or https://.", path=["url"])
        if config["timeout"] not in (None, Unknown) and float(config["timeout"]) <= 0:
            diags.add_error("There is no time for a call", "Write how many seconds it may take.", path=["timeout"])

    def configure_provider(self, diags: Diagnostics, config: Config) -> None:
        """Make the API from the provider block. In a plan, values may be Unknown; apply configures again."""
        self.configured = None
        if Unknown in config.values():
            return
        if token := config["token"] or os.environ.get("NOTES_TOKEN"):
            self.configured = API(config["url"], token, float(config["timeout"] or 60), STOPPING)
        else:
            diags.add_error("There is no token", "Set the environment variable NOTES_TOKEN, or token.", path=["token"])

    @property
    def api(self) -> API:
        """The API. APIError while the provider block has unknown values."""
        if not self.configured:
            raise APIError("The provider block is not known yet: apply what it refers to first, with -target=ADDRESS.")
        return self.configured

    def get_resources(self) -> list[type[Resource]]:
        """Return all kinds of resources."""
        return [Note]

    def get_data_sources(self) -> list[type[DataSource]]:
        """Return all kinds of data sources."""
        return [NoteData, NotesData]

    def get_functions(self) -> list[type[Function]]:
        """Return all functions."""
        return [Slug]

    def find(self, name: str, diags: Diagnostics) -> State | None:
        """Return a note. If it does not exist, report an error and return None."""
        with reporting(diags, "The note cannot be read"):
            text = self.api.read(name)
            if text is not None:
                return state(name, text)
            diags.add_error("There is no such note", f"{self.api.url} has no {name!r}.", path=["name"])
        return None


class Note(Resource):
    """`resource "notes_note"`: the note `name` with the content `text`."""

    def __init__(self, provider: Notes) -> None:
        self.provider = provider

    @classmethod
    def get_name(cls) -> str:
        """Return the name without the prefix."""
        return "note"

    @classmethod
    def get_schema(cls) -> Schema:
        """Return the attributes. If old states no longer fit, raise the version and add upgrade()."""
        return Schema(
            [
                Attribute("id", String(), "The same as name.", computed=True),
                Attribute("name", String(), "What it is called.", required=True, requires_replace=True),
                Attribute("text", String(), "What it says.", required=True),
                Attribute("size", Number(), "The number of characters.", computed=True),
            ],
            version=1,
        )

    def validate(self, diags: Diagnostics, type_name: str, config: Config) -> None:
        """Check the resource block. An error names the attribute, and Terraform shows its line."""
        super().validate(diags, type_name, config)
        name = config["name"]
        if name is not Unknown and (not name or name.startswith(".") or "/" in name):
            diags.add_error("This is no name for a note", "It must not have a slash, or begin with a dot.", ["name"])

    def plan(self, ctx: PlanContext, current: State | None, planned: State) -> State:
        """Plan the computed attributes. Terraform refuses a result that differs from the plan; Unknown may change."""
        text = planned["text"]
        size = Unknown if text is Unknown else len(text)
        return {**planned, "id": planned["name"], "size": size}

    def create(self, ctx: CreateContext, planned: State) -> State | None:
        """Create the note, and return its state."""
        name, text = planned["name"], planned["text"]
        with reporting(ctx.diagnostics, "The note was not created", ["name"]):
            self.provider.api.create(name, text)
            _log.info("created", extra={"note": name})
            return state(name, text)
        return None

    def read(self, ctx: ReadContext, current: State) -> State | None:
        """Return the note's state now. None if it is gone: Terraform then plans to create it again."""
        if not self.provider.configured:
            ctx.diagnostics.add_warning("The note was not read", "The provider block is not known yet.")
            return current
        with reporting(ctx.diagnostics, "The note cannot be read"):
            text = self.provider.api.read(current["id"])
            return None if text is None else state(current["id"], text)
        return current

    def update(self, ctx: UpdateContext, current: State, planned: State) -> State | None:
        """Change the note in place."""
        with reporting(ctx.diagnostics, "The note was not changed"):
            self.provider.api.update(planned["name"], planned["text"])
            return state(planned["name"], planned["text"])
        return current

    def delete(self, ctx: DeleteContext, current: State) -> None:
        """Remove the note. After an error, Terraform keeps it in the state."""
        with reporting(ctx.diagnostics, "The note was not removed"):
            self.provider.api.delete(current["id"])

    def import_(self, ctx: ImportContext, id: str) -> State | None:  # noqa: A002 tf's name
        """Let Terraform manage an existing note: `terraform import notes_note.mine ID`."""
        return self.provider.find(id, ctx.diagnostics)


class NoteData(DataSource):
    """`data "notes_note"`: reads a note that Terraform does not manage."""

    def __init__(self, provider: Notes) -> None:
        self.provider = provider

    @classmethod
    def get_name(cls) -> str:
        """Return the name without the prefix."""
        return "note"

    @classmethod
    def get_schema(cls) -> Schema:
        """Return the attributes. The required ones choose the note."""
        return Schema(
            [
                Attribute("id", String(), computed=True),
                Attribute("name", String(), required=True),
                Attribute("text", String(), computed=True),
                Attribute("size", Number(), computed=True),
            ]
        )

    def read(self, ctx: ReadDataContext, config: Config) -> State | None:
        """Return the note."""
        return self.provider.find(config["name"], ctx.diagnostics)


class NotesData(DataSource):
    """`data "notes_notes"`: the names of all notes, or of the notes that begin with `prefix`."""

    def __init__(self, provider: Notes) -> None:
        self.provider = provider

    @classmethod
    def get_name(cls) -> str:
        """Return the name without the prefix."""
        return "notes"

    @classmethod
    def get_schema(cls) -> Schema:
        """Return the attributes."""
        names = Attribute("names", List(String()), "In the order of the alphabet.", computed=True)
        return Schema([Attribute("prefix", String(), optional=True), names])

    def read(self, ctx: ReadDataContext, config: Config) -> State | None:
        """Return the names."""
        with reporting(ctx.diagnostics, "The notes cannot be listed"):
            return {**config, "names": list(self.provider.api.names(config["prefix"] or ""))}
        return None


class Slug(Function):
    """`provider::notes::slug("Hello, World")` is "hello-world"."""

    def __init__(self, provider: Notes) -> None:
        pass

    @classmethod
    def get_name(cls) -> str:
        """Return the name."""
        return "slug"

    @classmethod
    def get_signature(cls) -> FunctionSignature:
        """Return the types of the parameters and of the result."""
        return FunctionSignature([Parameter("title", String())], Return(String()), summary="A title as a file's name")

    def call(self, ctx: CallContext, arguments: list[Any]) -> Any:
        """Return the result. It must depend only on the arguments."""
        words = "".join(letter if letter.isalnum() else " " for letter in arguments[0].lower()).split()
        if not words:
            ctx.diagnostics.add_error("The title has no letters or digits.")
        return "-".join(words)


PROVIDER = Notes()  # plugin.py serves it
