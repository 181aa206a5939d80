"""The provider of examples/terraform, under Terraform and OpenTofu."""

import os
import re
import shutil
import signal
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import PLUGINS, ROOT, World, eventually

from examples import Example, programs, writer_of

CONFIGURATIONS = ROOT / "tests" / "terraform"

WHAT_TF_LACKS = """
from tf import schema, types, utils
from tf.gen import tfplugin_pb2 as pb
calls = pb.DESCRIPTOR.services_by_name["Provider"].methods_by_name
assert {mode.name for mode in schema.NestMode} == {"Set", "Single"}
assert not {"Object", "Tuple"} & vars(types).keys()
assert "write_only" not in pb.Schema.Attribute.DESCRIPTOR.fields_by_name
assert not {"GetResourceIdentitySchemas", "OpenEphemeralResource"} & {*calls}
assert utils._msgpack_ext_hook(12, b"") is not types.Unknown
"""

FOLDER_OF_A_RESOURCE = """
variable "folder" {
  default = "first"
}

resource "terraform_data" "folder" {
  input = var.folder
}

provider "notes" {
  folder = terraform_data.folder.output"""

KINDS_THAT_WAIT = """
resource "kinds_all" "waits" {
  waits = true
}
"""

pytestmark = [
    Example.group("terraform"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("host", programs("terraform", "tofu")),
]


@pytest.fixture
def provider(world: World, copies: Callable[[str], Example]) -> Example:
    """The example, found by its launcher, with a folder of Terraform files in the world's."""
    example = copies("terraform")
    export = example.run(world, "make --silent launcher").split()[1]
    name, _, value = export.partition("=")
    world.env |= {name: value, "CHECKPOINT_DISABLE": "1", "TF_CLI_ARGS": "-no-color"}
    shutil.copytree(example.folder / "example", world.folder, dirs_exist_ok=True)
    return example


def edit(world: World, before: str, after: str) -> None:
    file = world.folder / "main.tf"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_what_the_readme_shows(world: World, provider: Example, host: str) -> None:
    _, with_host, *_ = provider.console_blocks()
    (world.folder / "bin").mkdir()
    (world.folder / "bin" / "terraform").symlink_to(host)
    world.env["PATH"] = f"{world.folder / 'bin'}:{world.env['PATH']}"
    try:
        said = provider.run(world, provider.typed(with_host))
        assert said.endswith(provider.shown(with_host).rstrip())
    finally:
        for path in ("terraform.tfstate", "hello-world"):
            (provider.folder / "example" / path).unlink(missing_ok=True)


def test_the_life_of_a_resource(world: World, provider: Example, host: str) -> None:
    """After each command, no process is left."""

    def run(arguments: str, code: int = 0) -> str:
        return provider.run(world, f"'{host}' {arguments} 2>&1", code, cwd=world.folder)

    note = world.folder / "hello-world"
    assert "1 to add" in run("plan")
    run("apply -auto-approve")
    assert note.read_text() == "from Terraform"
    assert "No changes" in run("plan -detailed-exitcode")
    edit(world, '"from Terraform"', '"changed by Terraform"')
    assert "0 added, 1 changed, 0 destroyed" in run("apply -auto-approve")
    assert note.read_text() == "changed by Terraform"
    assert run("output -raw note") == "hello-world has 20 characters"
    edit(world, '"Hello, World"', '"Another"')
    assert "1 added, 0 changed, 1 destroyed" in run("apply -auto-approve")  # the name requires replacement
    assert not note.exists()
    (world.folder / "another").unlink()
    assert "1 to add" in run("plan")  # it is gone, by other hands
    run("apply -auto-approve")
    run("state rm notes_note.hello")
    assert "There is no such note" in run("import notes_note.hello nothing", 1)
    assert "Import successful!" in run("import notes_note.hello another")
    assert "1 destroyed" in run("destroy -auto-approve")
    assert not (world.folder / "another").exists()


def test_a_configuration_as_people_write_it(world: World, provider: Example, host: str) -> None:
    """Where the locale's encoding is not UTF-8, either, as on Windows."""
    main = world.folder / "main.tf"
    shutil.copy(CONFIGURATIONS / "notes.tf", main)
    shutil.copy(CONFIGURATIONS / "notes.tftest.hcl", world.folder)
    for folder in ("notes", "tested"):
        (world.folder / folder).mkdir()
    world.env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(arguments: str, code: int = 0) -> str:
        return provider.run(world, f"'{host}' {arguments} 2>&1", code, cwd=world.folder)

    assert "6 added" in run("apply -auto-approve")
    line_ends, unicode = world.folder / "notes" / "line-ends", world.folder / "notes" / "unicode"
    assert line_ends.read_bytes() == b"a\r\nb\n\rc\r"
    assert unicode.read_text(encoding="utf-8") == "ä \u2028 \U0001f40d"
    run("plan -detailed-exitcode")  # it ends with 2 if there are changes
    assert "2 passed, 0 failed" in run("test")

    line_ends.write_bytes(b"a\nb\n\nc\n")
    unicode.unlink()
    (world.folder / "notes" / "old").write_text("old")
    edit(world, '"notes_note" "summary"', '"notes_note" "renamed"')
    text = main.read_text(encoding="utf-8")
    text += "moved {\n  from = notes_note.summary\n  to = notes_note.renamed\n}\n"
    text += 'resource "notes_note" "old" {\n  name = "old"\n  text = "new"\n}\n'
    text += 'import {\n  to = notes_note.old\n  id = "old"\n}\n'
    main.write_text(text, encoding="utf-8")
    said = run("apply -auto-approve")
    assert "(moved from notes_note.summary)" in said
    assert "1 imported, 1 added, 2 changed, 0 destroyed" in said
    assert line_ends.read_bytes() == b"a\r\nb\n\rc\r"
    assert unicode.exists()
    assert (world.folder / "notes" / "old").read_text() == "new"

    expression = "notes_note.counted[1].text"
    if Path(host).name != "tofu":  # whose console ends the provider before it calls functions
        expression = f"provider::notes::slug({expression})"
    said = provider.run(world, f"echo '{expression}' | '{host}' console", cwd=world.folder)
    assert re.search('^"1.later"$', said, re.MULTILINE)

    assert "148 added" in run("apply -auto-approve -parallelism=50 -var many=150")
    assert len(list((world.folder / "notes").glob("n*"))) == 150
    assert "155 destroyed" in run("destroy -auto-approve -parallelism=50 -var many=150")
    assert not list((world.folder / "notes").iterdir())


def test_a_provider_block_with_a_value_of_a_resource(world: World, provider: Example, host: str) -> None:
    """A plan does without the folder where it can; what needs it says so."""
    edit(world, 'provider "notes" {\n  folder = "."', FOLDER_OF_A_RESOURCE)
    for folder in ("first", "second"):
        (world.folder / folder).mkdir()

    def run(arguments: str, code: int = 0) -> str:
        return provider.run(world, f"'{host}' {arguments} 2>&1", code, cwd=world.folder)

    assert "2 added" in run("apply -auto-approve")
    assert (world.folder / "first" / "hello-world").exists()
    said = run("plan -var folder=second", 1)
    assert "Warning: The note was not read" in said
    assert "Error: The folder of the notes is not known yet" in said  # the data source's
    run("apply -auto-approve -target=terraform_data.folder -var folder=second")
    assert "1 added" in run("apply -auto-approve -var folder=second")
    assert (world.folder / "second" / "hello-world").exists()


def test_values_of_all_kinds(world: World, provider: Example, host: str) -> None:
    """Known in part, or null; with what README advises where tf lacks something."""
    folder = world.folder / "kinds"
    folder.mkdir()
    for name in ("notes_plugin.py", "notes_servicer.py"):
        shutil.copy(provider.folder / name, folder)
    shutil.copy(PLUGINS / "kinds_provider.py", folder / "notes_provider.py")
    launcher = folder / "terraform-provider-kinds"
    command = f'PYTHONPATH="{provider.folder}" exec "{provider.folder}/.venv/bin/python" "{folder}/notes_plugin.py"'
    launcher.write_text(f"#!/bin/sh\n{command}\n")
    launcher.chmod(0o755)
    overrides = f'dev_overrides {{\n    "example.com/me/kinds" = "{folder}"\n  }}'
    (folder / "terraform.tfrc").write_text(f"provider_installation {{\n  {overrides}\n}}\n")
    world.env["TF_CLI_CONFIG_FILE"] = str(folder / "terraform.tfrc")
    shutil.copy(CONFIGURATIONS / "kinds.tf", world.folder / "main.tf")

    def run(arguments: str, code: int = 0) -> str:
        return provider.run(world, f"'{host}' {arguments} 2>&1", code, cwd=world.folder)

    said = run("apply -auto-approve")
    assert re.search(r'\+ default +\s*= "known before"', said)
    assert re.search(r'python_types = \[\s*"str",\s*"float",\s*"int",\s*\]', said)
    assert 'json = "value"' in " ".join(said.split())
    run("plan -detailed-exitcode")
    assert "1 added, 2 changed, 1 destroyed" in run("apply -auto-approve -var run=2")  # all was known, and is no more
    run("plan -detailed-exitcode -var run=2")

    (world.folder / "main.tf").write_text((CONFIGURATIONS / "kinds.tf").read_text() + KINDS_THAT_WAIT)
    apply = world.run(host, "apply", "-auto-approve", "-var", "run=2")
    assert eventually((world.folder / "waits").exists)
    apply.send_signal(signal.SIGINT)
    assert "Error: Told to stop" in apply.communicate()[1].decode()


def test_what_tf_lacks(world: World, provider: Example, host: str) -> None:
    """If this fails, tf has learnt something, and README and servicer.py can be shorter."""
    provider.run(world, f".venv/bin/python -c '{WHAT_TF_LACKS}'")


def test_errors_show_the_line(world: World, provider: Example, host: str) -> None:
    (world.folder / "hello-world").write_text("not Terraform's")
    said = provider.run(world, f"'{host}' apply -auto-approve 2>&1", 1, cwd=world.folder)
    assert "Error: The note cannot be created" in said
    assert "hello-world exists." in said
    assert re.search(r"on main.tf line \d+, in resource \"notes_note\" \"hello\":\n.*\d+: +name +=", said)
    edit(world, 'provider::notes::slug("Hello, World")', '".hidden"')
    said = provider.run(world, f"'{host}' validate 2>&1", 1, cwd=world.folder)
    assert "This is no name for a note" in said
    edit(world, '".hidden"', 'provider::notes::slug("!")')
    said = provider.run(world, f"'{host}' validate 2>&1", 1, cwd=world.folder)
    assert "The title has no letters or digits" in re.sub(r"\s+│?\s*", " ", said)
    edit(world, 'provider::notes::slug("!")', "var.nothing")
    edit(world, "notes_note.hello.name\n", "var.nothing\n")
    with (world.folder / "main.tf").open("a") as file:
        file.write('variable "nothing" {\n  default = null\n}\n')
    said = provider.run(world, f"'{host}' plan 2>&1", 1, cwd=world.folder)
    assert len(re.findall(r"Error: name is null\n.*?\d+: +name += var.nothing\n", said, re.DOTALL)) == 2
    edit(world, 'folder = "."', "folder = var.nothing")
    said = provider.run(world, f"'{host}' plan 2>&1", 1, cwd=world.folder)
    assert re.search(r"Error: folder is null\n.*?\d+: +folder += var.nothing\n", said, re.DOTALL)


def test_the_log_has_levels(world: World, provider: Example, host: str) -> None:
    world.env |= {"TF_LOG_PROVIDER": "INFO", "TF_LOG_PATH": str(world.folder / "log")}
    provider.run(world, f"'{host}' apply -auto-approve", cwd=world.folder)
    log = (world.folder / "log").read_text()
    assert re.search(r"\[INFO\] +provider.terraform-provider-notes: written: .*path=hello-world", log)
    assert not re.search(r"\[(ERROR|WARN)\] +provider.terraform-provider-notes", log)


def test_attaching_to_a_debugged_provider(world: World, provider: Example, host: str) -> None:
    plugin = world.run(
        provider.folder / ".venv/bin/python", provider.folder / "notes_plugin.py", "--debug", "example.com/me/notes"
    )
    assert plugin.stdout
    world.env["TF_REATTACH_PROVIDERS"] = plugin.stdout.readline().decode()
    for _ in range(2):
        apply = world.run(host, "apply", "-auto-approve")
        out, err = apply.communicate()
        assert apply.returncode == 0, (out + err).decode()
    assert plugin.poll() is None
    plugin.send_signal(signal.SIGTERM)
    assert plugin.wait(5) == 0
    plan = world.run(host, "plan", "-no-color")
    error = " ".join(plan.communicate()[1].decode().lower().split())
    assert "reattachment process not found" in re.sub(r"[│╷╵] ?", "", error)  # the line is stale
    (world.folder / "hello-world").unlink()


def test_the_provider_leaves_when_terraform_is_killed(world: World, provider: Example, host: str) -> None:
    """With a call in flight, which waits for a pipe that nobody writes to."""
    os.mkfifo(world.folder / "waits")
    edit(world, "notes_note.hello.name\n", '"waits"\n')
    plan = world.run(host, "plan", "-input=false")
    writer = eventually(lambda: writer_of(world.folder / "waits"))
    assert writer
    plan.kill()
    assert world.gone()
    os.close(writer)


def test_dist(world: World, provider: Example, host: str) -> None:
    """What `make dist` builds, from a mirror, beside another provider, without Python."""
    if not (provider.folder / "dist" / "terraform-provider-notes_0.1.0_SHA256SUMS").exists():
        provider.run(world, provider.typed(provider.console_blocks()[2]))
    provider.run(world, "sha256sum --check *SHA256SUMS", cwd=provider.folder / "dist")
    (archive,) = (provider.folder / "dist").glob("*.zip")
    mirror = world.folder / "mirror" / "example.com" / "me"
    (mirror / "notes").mkdir(parents=True)
    shutil.copy(archive, mirror / "notes")
    target = archive.stem.removeprefix("terraform-provider-notes_0.1.0_")
    (mirror / "other").mkdir()
    with zipfile.ZipFile(mirror / "other" / f"terraform-provider-other_2.0.0_{target}.zip", "w") as other:
        other.write(
            provider.folder / "dist" / "launcher" / "terraform-provider-notes", "terraform-provider-other_v2.0.0"
        )
    (settings,) = re.findall(r"```hcl\n(.*?)```", (provider.folder / "README.md").read_text(), re.DOTALL)
    assert "/path/to/mirror" in settings
    settings = settings.replace("/path/to/mirror", str(world.folder / "mirror"))
    (world.folder / ".terraformrc").write_text(textwrap.dedent(settings))
    alone = (world.folder / "main.tf").read_text()
    edit(
        world,
        '      source = "example.com/me/notes"\n    }\n',
        '      source = "example.com/me/notes"\n    }\n    other = {\n      source = "example.com/me/other"\n    }\n',
    )
    with (world.folder / "main.tf").open("a") as file:
        file.write(
            '\nprovider "other" {\n  folder = "."\n}\n\nresource "notes_note" "other" {\n  provider = other\n'
            '  name = "other"\n  text = "x"\n}\n'
        )
    del world.env["TF_CLI_CONFIG_FILE"]
    world.env["HOME"] = str(world.folder)
    provider.run(world, f"'{host}' init", cwd=world.folder)
    lock = (world.folder / ".terraform.lock.hcl").read_text()
    assert re.search(r'provider "example.com/me/notes" {\n  version = "0.1.0"\n  hashes = \[\n    "h1:', lock)
    provider.run(world, f"'{host}' apply -auto-approve", cwd=world.folder)
    assert (world.folder / "other").read_text() == "x"
    provider.run(world, f"'{host}' destroy -auto-approve", cwd=world.folder)
    # Without Python: none in PATH, and the venv that the provider was built in is gone.
    (world.folder / "main.tf").write_text(alone.replace('"from Terraform"', '"without Python"'))
    venv = provider.folder / ".venv"
    venv.rename(provider.folder / "away")
    try:
        world.env["PATH"] = str(world.folder / "nothing")
        apply = world.run(host, "apply", "-auto-approve")
        out, err = apply.communicate()
        assert apply.returncode == 0, (out + err).decode()
    finally:
        (provider.folder / "away").rename(venv)
    assert not world.processes()
    assert (world.folder / "hello-world").read_text() == "without Python"
