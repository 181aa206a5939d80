"""The provider: a resource, a data source and a function, on the framework tf of PyPI. You replace this.

A provider stands between Terraform and something that keeps things, usually a cloud's API. Here that is a folder.
"""

import logging
import threading
from pathlib import Path
from typing import Any

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
from tf.types import Number, String, Unknown
from tf.utils import Diagnostics

_log = logging.getLogger(__name__)  # the records reach Terraform's log, TF_LOG, with their level


class Notes(Provider):
    """`provider "notes" { folder = "..." }`."""

    folder = Path()
    configured = False  # not before apply, if the folder comes from another resource

    def __init__(self) -> None:
        self.lock = threading.Lock()  # handlers run in parallel

    def full_name(self) -> str:
        """Return what `source` in required_providers says."""
        return "example.com/me/notes"

    def get_model_prefix(self) -> str:
        """Return what the names of resources and data sources begin with."""
        return "notes_"

    def get_provider_schema(self, diags: Diagnostics) -> Schema:
        """Return what stands in the provider block."""
        return Schema([Attribute("folder", String(), "The folder of the notes.", required=True)])

    def validate_config(self, diags: Diagnostics, config: Config) -> None:
        """Check the provider block. Values that come from other resources are Unknown."""
        if config["folder"] == "":
            diags.add_error("The folder has no name", 'Write folder = "." for the working directory.', path=["folder"])

    def configure_provider(self, diags: Diagnostics, config: Config) -> None:
        """Take the provider block, and connect. In a plan the folder may be Unknown; apply configures again."""
        self.configured = config["folder"] is not Unknown
        if not self.configured:
            return
        self.folder = Path(config["folder"])
        if not self.folder.is_dir():
            diags.add_error("There is no such folder", f"Create {self.folder.absolute()} first.", path=["folder"])

    def get_resources(self) -> list[type[Resource]]:
        """Return all kinds of resources."""
        return [Note]

    def get_data_sources(self) -> list[type[DataSource]]:
        """Return all kinds of data sources."""
        return [NoteData]

    def get_functions(self) -> list[type[Function]]:
        """Return all functions."""
        return [Slug]

    def read(self, name: str, diags: Diagnostics) -> State | None:
        """Return the note as Terraform's state has it; None if there is none."""
        path = self.folder / name
        try:
            with path.open(encoding="utf-8", newline="") as file:
                text = file.read()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            diags.add_error("The note cannot be read", f"{path}: {error}.")
            return None
        return {"id": name, "name": name, "text": text, "size": len(text)}

    def find(self, name: str, diags: Diagnostics) -> State | None:
        """Return a note that must be there."""
        if not self.configured:
            detail = "The provider block has it from another resource. Apply that first, with -target=ADDRESS."
            diags.add_error("The folder of the notes is not known yet", detail)
            return None
        state = self.read(name, diags)
        if not state and not diags.has_errors():
            diags.add_error("There is no such note", f"{self.folder / name} does not exist.", path=["name"])
        return state

    def write(self, name: str, text: str, mode: str, diags: Diagnostics) -> State | None:
        """Write the note; return its state."""
        path = self.folder / name
        try:
            # newline="", or line ends would change, and Terraform refuses what differs from the plan.
            with path.open(mode, encoding="utf-8", newline="") as file:
                file.write(text)
        except OSError as error:
            diags.add_error("The note cannot be written", f"{path}: {error.strerror}.", path=["name"])
            return None
        _log.info("written", extra={"path": str(path)})
        return self.read(name, diags)


class Note(Resource):
    """`resource "notes_note"`: the file `name` with the content `text`."""

    def __init__(self, provider: Notes) -> None:
        self.provider = provider

    @classmethod
    def get_name(cls) -> str:
        """Return the name without the prefix."""
        return "note"

    @classmethod
    def get_schema(cls) -> Schema:
        """Return the attributes. After a change that old states do not fit, raise the version and add upgrade()."""
        return Schema(
            [
                Attribute("id", String(), "The same as name.", computed=True),
                Attribute("name", String(), "The file's name.", required=True, requires_replace=True),
                Attribute("text", String(), "The file's content.", required=True),
                Attribute("size", Number(), "The number of characters.", computed=True),
            ],
            version=1,
        )

    def validate(self, diags: Diagnostics, type_name: str, config: Config) -> None:
        """Check the resource block. An error names the attribute, and Terraform shows its line."""
        super().validate(diags, type_name, config)
        name = config["name"]
        if name is not Unknown and (not name or name.startswith(".") or "/" in name):
            diags.add_error("This is no name for a note", "It must be a file's, and not begin with a dot.", ["name"])

    def plan(self, ctx: PlanContext, current: State | None, planned: State) -> State:
        """Say what will be known only after the change; Terraform refuses what differs from the plan."""
        text = planned["text"]
        size = Unknown if text is Unknown else len(text)
        return {**planned, "id": planned["name"], "size": size}

    def create(self, ctx: CreateContext, planned: State) -> State | None:
        """Make it; return its state."""
        name = planned["name"]
        with self.provider.lock:  # otherwise two handlers could look before either writes
            for other in self.provider.folder.iterdir():
                if other.name.lower() == name.lower():  # the same file on macOS and Windows
                    ctx.diagnostics.add_error("The note cannot be created", f"{other} exists.", path=["name"])
                    return None
            return self.provider.write(name, planned["text"], "x", ctx.diagnostics)

    def read(self, ctx: ReadContext, current: State) -> State | None:
        """Return what is there now; None if it is gone, and Terraform plans to create it again."""
        if not self.provider.configured:
            ctx.diagnostics.add_warning("The note was not read", "The folder of the notes is not known yet.")
            return current
        return self.provider.read(current["id"], ctx.diagnostics)

    def update(self, ctx: UpdateContext, current: State, planned: State) -> State | None:
        """Change it in place."""
        return self.provider.write(planned["name"], planned["text"], "w", ctx.diagnostics)

    def delete(self, ctx: DeleteContext, current: State) -> None:
        """Remove it. That it is gone already is no error."""
        (self.provider.folder / current["id"]).unlink(missing_ok=True)

    def import_(self, ctx: ImportContext, id: str) -> State | None:  # noqa: A002 tf's name
        """Take what exists under Terraform's care: `terraform import notes_note.mine ID`."""
        return self.provider.find(id, ctx.diagnostics)


class NoteData(DataSource):
    """`data "notes_note"`: reads a note that Terraform does not keep."""

    def __init__(self, provider: Notes) -> None:
        self.provider = provider

    @classmethod
    def get_name(cls) -> str:
        """Return the name without the prefix."""
        return "note"

    @classmethod
    def get_schema(cls) -> Schema:
        """Return the attributes: those that are required choose the note."""
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
        """Return the parameters, and what is returned."""
        return FunctionSignature([Parameter("title", String())], Return(String()), summary="A title as a file's name")

    def call(self, ctx: CallContext, arguments: list[Any]) -> Any:
        """Return the result. It may depend on the arguments alone."""
        words = "".join(letter if letter.isalnum() else " " for letter in arguments[0].lower()).split()
        if not words:
            ctx.diagnostics.add_error("The title has no letters or digits.")
        return "-".join(words)


PROVIDER = Notes()  # what plugin.py serves
