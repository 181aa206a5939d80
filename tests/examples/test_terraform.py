"""The provider of examples/terraform, under Terraform and OpenTofu."""

import re
import shutil
import signal
import textwrap
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import PLUGINS, SUPPORT, World, eventually

from examples import Example, Serving, load, programs

CONFIGURATIONS = SUPPORT / "terraform"
URL = "http://127.0.0.1:8000/notes"  # in example/main.tf

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

URL_OF_A_RESOURCE = """
variable "folder" {
  default = "first"
}

resource "terraform_data" "folder" {
  input = var.folder
}

provider "notes" {
  url = "URL/${terraform_data.folder.output}"
"""

TWELVE_NOTES = """
resource "notes_note" "twelve" {
  count = 12
  name  = "twelve-${count.index}"
  text  = "x"
}
"""

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


class API(Serving):
    """The example's API, example/server.py; a test can refuse requests, or act before one is answered."""

    def __init__(self) -> None:
        self.asked: list[str] = []  # "GET /notes/hello-world"
        self.refusals: list[int] = []  # HTTP statuses, for the next requests
        self.before: Callable[[str], object] = str  # called with each request, in its thread; it may wait
        module = load("terraform/example/server.py")
        api = self

        class Handler(module.Handler):  # type: ignore[misc, name-defined]
            def answer(self, path: str, given: dict[str, str]) -> Any:
                asked = f"{self.command} {path}"
                api.asked.append(asked)
                api.before(asked)
                return (api.refusals.pop(0), "no") if api.refusals else super().answer(path, given)

        class Server(module.Server):  # type: ignore[misc, name-defined]
            def handle_error(self, *_: Any) -> None:
                """Ignore it: a killed provider does not wait for the answer."""

        server = Server(0)
        server.RequestHandlerClass = Handler
        self.notes: dict[str, str] = server.notes
        self.token: str = module.TOKEN
        self.url: str = server.url
        super().__init__(server)

    def at(self, method: str, act: Callable[[], object]) -> None:
        """Call `act` before the API answers requests of the method."""
        self.before = lambda asked: asked.startswith(method) and act()


@pytest.fixture
def api() -> Iterator[API]:
    api = API()
    yield api
    api.close()


@pytest.fixture
def gate(api: API) -> Iterator[threading.Event]:
    """While it is closed, the API answers no POST."""
    gate = threading.Event()
    api.at("POST", lambda: gate.wait(60))
    yield gate
    gate.set()


@pytest.fixture
def provider(world: World, copies: Callable[[str], Example], api: API) -> Example:
    """The example, which Terraform finds by its launcher; its Terraform files are in the world's folder."""
    example = copies("terraform")
    export = example.run(world, "make --silent launcher").split()[1]
    name, _, value = export.partition("=")
    world.env |= {name: value, "CHECKPOINT_DISABLE": "1", "TF_CLI_ARGS": "-no-color", "NOTES_TOKEN": api.token}
    shutil.copytree(example.folder / "example", world.folder, dirs_exist_ok=True)
    edit(world, URL, api.url)
    return example


def flat(said: str) -> str:
    """Terraform's output on one line, without the frames around its errors."""
    return re.sub(r"\s*[│╷╵]?\s+", " ", said)


def edit(world: World, before: str, after: str) -> None:
    file = world.folder / "main.tf"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_what_the_readme_shows(world: World, provider: Example, host: str, api: API) -> None:
    """Except that the test starts example/server.py itself, on another port."""
    _, with_host, *_ = provider.console_blocks()
    (world.folder / "bin").mkdir()
    (world.folder / "bin" / "terraform").symlink_to(host)
    world.env["PATH"] = f"{world.folder / 'bin'}:{world.env['PATH']}"
    server = world.run(provider.folder / ".venv/bin/python", "example/server.py", "0", cwd=provider.folder)
    assert server.stdout
    url = server.stdout.readline().decode().strip()
    main = provider.folder / "example" / "main.tf"
    text = main.read_text()
    main.write_text(text.replace(URL, url))
    try:
        typed = provider.typed(with_host)
        assert "python3 example/server.py &\n" in typed
        process = world.run("sh", "-e", "-c", typed.replace("python3 example/server.py &\n", ""), cwd=provider.folder)
        out, err = process.communicate()
        assert process.returncode == 0, (out + err).decode()
        assert out.decode().endswith(provider.shown(with_host).splitlines()[-1])
    finally:
        main.write_text(text)
        (provider.folder / "example" / "terraform.tfstate").unlink(missing_ok=True)
        server.kill()


def test_the_life_of_a_resource(world: World, provider: Example, host: str, api: API) -> None:
    """No process is left after any command."""

    def run(arguments: str, code: int = 0) -> str:
        return provider.run(world, f"'{host}' {arguments} 2>&1", code, cwd=world.folder)

    assert "1 to add" in run("plan")
    run("apply -auto-approve")
    assert api.notes == {"/notes/hello-world": "from Terraform"}
    assert "No changes" in run("plan -detailed-exitcode")
    edit(world, '"from Terraform"', '"changed by Terraform"')
    assert "0 added, 1 changed, 0 destroyed" in run("apply -auto-approve")
    assert api.notes == {"/notes/hello-world": "changed by Terraform"}
    assert run("output -raw note") == "hello-world has 20 characters"
    edit(world, '"Hello, World"', '"Another"')
    assert "1 added, 0 changed, 1 destroyed" in run("apply -auto-approve")  # a new name requires a replacement
    assert [*api.notes] == ["/notes/another"]
    run("state rm notes_note.hello")
    assert "There is no such note" in run("import notes_note.hello nothing", 1)
    assert "Import successful!" in run("import notes_note.hello another")
    assert "1 destroyed" in run("destroy -auto-approve")
    assert not api.notes


def test_drift(world: World, provider: Example, host: str, api: API) -> None:
    """The provider sees and repairs what others change or remove, even during an apply."""

    def run(arguments: str, code: int = 0) -> str:
        return provider.run(world, f"'{host}' {arguments} 2>&1", code, cwd=world.folder)

    run("apply -auto-approve")
    api.notes["/notes/hello-world"] = "changed by others"
    assert '~ text = "changed by others" -> "from Terraform"' in run("plan -detailed-exitcode", 2)
    assert "0 added, 1 changed, 0 destroyed" in run("apply -auto-approve")
    api.notes.clear()
    assert "1 to add, 0 to change, 0 to destroy" in run("plan -detailed-exitcode", 2)
    assert "1 added, 0 changed, 0 destroyed" in run("apply -auto-approve")
    assert api.notes == {"/notes/hello-world": "from Terraform"}
    api.at("DELETE", api.notes.clear)
    run("destroy -auto-approve")
    run("apply -auto-approve")
    edit(world, '"from Terraform"', '"changed by Terraform"')
    api.at("PUT", api.notes.clear)
    assert "there is no such note" in run("apply -auto-approve", 1)
    assert "1 added" in run("apply -auto-approve")


def test_an_api_that_is_busy_or_fails(world: World, provider: Example, host: str, api: API) -> None:
    """A failed change does not get into the state."""
    world.env |= {"TF_LOG_PROVIDER": "INFO", "TF_LOG_PATH": str(world.folder / "log")}

    def run(arguments: str, code: int = 0) -> str:
        return provider.run(world, f"'{host}' {arguments} 2>&1", code, cwd=world.folder)

    api.refusals = [429, 503]  # the first refusal has a Retry-After
    run("apply -auto-approve")
    assert api.asked[:3] == ["POST /notes"] * 3
    log = (world.folder / "log").read_text()
    (busy,) = re.findall(r"\[INFO\] +provider.terraform-provider-notes: the API is busy: (.*status=429.*)", log)
    assert re.search(r"seconds=1\b(?!\.)", busy)
    edit(world, '"from Terraform"', '"changed by Terraform"')
    for command, method in (("apply", "PUT"), ("destroy", "DELETE")):
        api.at(method, lambda: api.refusals.append(500))
        said = run(f"{command} -auto-approve", 1)
        assert f'{method} {api.url}/hello-world was answered with 500 Internal Server Error: "no"' in flat(said)
        api.before = str
        assert 'text = "from Terraform"' in run("state show notes_note.hello")
    assert "1 changed" in run("apply -auto-approve")


def test_the_token_is_not_shown(world: World, provider: Example, host: str, api: API) -> None:
    """Terraform's output, the state and the log do not contain it."""
    del world.env["NOTES_TOKEN"]
    world.env |= {"TF_LOG": "TRACE", "TF_LOG_PATH": str(world.folder / "log"), "TF_VAR_token": "wrong-0815"}
    said = provider.run(world, f"'{host}' apply -auto-approve 2>&1", 1, cwd=world.folder)
    assert "Set the environment variable NOTES_TOKEN, or token." in said
    edit(world, "NOTES_TOKEN in the environment", "\n  token = var.token")
    with (world.folder / "main.tf").open("a") as file:
        file.write('variable "token" {\n  sensitive = true\n}\n')
    said = provider.run(world, f"'{host}' apply -auto-approve 2>&1", 1, cwd=world.folder)
    assert "401 Unauthorized" in said
    world.env["TF_VAR_token"] = api.token
    said += provider.run(world, f"'{host}' apply -auto-approve 2>&1", cwd=world.folder)
    for text in (said, *[path.read_text() for path in (world.folder / "log", world.folder / "terraform.tfstate")]):
        assert "wrong-0815" not in text
        assert f'"{api.token}"' not in text
        assert "Bearer" not in text


def test_creates_run_in_parallel(world: World, provider: Example, host: str, api: API) -> None:
    """As many as -parallelism says: the API answers none before all have arrived."""
    (world.folder / "twelve.tf").write_text(TWELVE_NOTES)
    edit(world, '"notes_note" "hello" {', '"notes_note" "hello" {\n  depends_on = [notes_note.twelve]')
    barrier = threading.Barrier(12)
    api.before = lambda asked: asked == "POST /notes" and len(api.asked) <= 12 and barrier.wait(60)
    provider.run(world, f"'{host}' apply -auto-approve -parallelism=12", cwd=world.folder)
    assert not barrier.broken
    assert len(api.notes) == 13


def test_a_create_that_takes_too_long(
    world: World, provider: Example, host: str, api: API, gate: threading.Event
) -> None:
    """Terraform does not know whether the API made the note. If it did, the user can import the note."""

    def run(arguments: str, code: int = 0) -> str:
        return provider.run(world, f"'{host}' {arguments} 2>&1", code, cwd=world.folder)

    edit(world, "# and NOTES_TOKEN", "\n  timeout = 2 #")
    said = flat(run("apply -auto-approve", 1))
    assert "timed out (the timeout is 2 s). The API may have done it all the same." in said
    gate.set()
    assert eventually(lambda: api.notes)
    assert "409 Conflict" in run("apply -auto-approve", 1)
    assert "Import successful!" in run("import notes_note.hello hello-world")
    run("apply -auto-approve")
    assert "No changes" in run("plan -detailed-exitcode")


def test_ctrl_c_during_a_create(world: World, provider: Example, host: str, api: API, gate: threading.Event) -> None:
    """The provider waits for a request in flight, whose note gets into the state; it gives up on a busy API."""
    apply = world.run(host, "apply", "-auto-approve")
    assert eventually(lambda: api.asked)
    apply.send_signal(signal.SIGINT)
    assert apply.stdout
    said = b""
    while b"Stopping operation..." not in said:
        line = apply.stdout.readline()
        assert line, said
        said += line
    gate.set()
    apply.communicate()
    assert eventually(lambda: not world.processes())
    provider.run(world, f"'{host}' state show notes_note.hello", cwd=world.folder)
    provider.run(world, f"'{host}' destroy -auto-approve", cwd=world.folder)
    assert not api.notes

    edit(world, "# and NOTES_TOKEN", "\n  timeout = 600 #")
    api.refusals = [429] * 600
    apply = world.run(host, "apply", "-auto-approve")
    assert eventually(lambda: len(api.refusals) < 600)
    apply.send_signal(signal.SIGINT)
    said = apply.communicate()[1]
    assert "told to stop while the API was busy; it did nothing." in flat(said.decode())
    assert len(api.refusals) > 500
    assert not api.notes
    assert eventually(lambda: not world.processes())


def test_a_configuration_as_people_write_it(world: World, provider: Example, host: str, api: API) -> None:
    """Even where the locale's encoding is not UTF-8, as on Windows."""
    main = world.folder / "main.tf"
    shutil.copy(CONFIGURATIONS / "notes.tf", main)
    shutil.copy(CONFIGURATIONS / "notes.tftest.hcl", world.folder)
    world.env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    world.env["TF_VAR_api"] = api.url.removesuffix("/notes")

    def run(arguments: str, code: int = 0) -> str:
        return provider.run(world, f"'{host}' {arguments} 2>&1", code, cwd=world.folder)

    assert "6 added" in run("apply -auto-approve")
    assert api.notes["/notes/line-ends"] == "a\r\nb\n\rc\r"
    assert api.notes["/notes/unicode"] == "ä \u2028 \U0001f40d"
    run("plan -detailed-exitcode")  # its exit code would be 2 if there were changes
    assert "2 passed, 0 failed" in run("test")

    api.notes["/notes/line-ends"] = "a\nb\n\nc\n"
    del api.notes["/notes/unicode"]
    api.notes["/notes/old"] = "old"
    edit(world, '"notes_note" "summary"', '"notes_note" "renamed"')
    text = main.read_text(encoding="utf-8")
    text += "moved {\n  from = notes_note.summary\n  to = notes_note.renamed\n}\n"
    text += 'resource "notes_note" "old" {\n  name = "old"\n  text = "new"\n}\n'
    text += 'import {\n  to = notes_note.old\n  id = "old"\n}\n'
    main.write_text(text, encoding="utf-8")
    said = run("apply -auto-approve")
    assert "(moved from notes_note.summary)" in said
    assert "1 imported, 1 added, 2 changed, 0 destroyed" in said
    assert api.notes["/notes/line-ends"] == "a\r\nb\n\rc\r"
    assert "/notes/unicode" in api.notes
    assert api.notes["/notes/old"] == "new"

    expression = "notes_note.counted[1].text"
    if Path(host).name != "tofu":  # tofu's console ends the provider before it calls functions
        expression = f"provider::notes::slug({expression})"
    said = provider.run(world, f"echo '{expression}' | '{host}' console", cwd=world.folder)
    assert re.search('^"1.later"$', said, re.MULTILINE)

    assert "148 added" in run("apply -auto-approve -parallelism=50 -var many=150")
    assert len([path for path in api.notes if path.startswith("/notes/n")]) == 150
    api.asked.clear()
    assert run("output -raw counted") == "150"  # from two pages
    run("plan -detailed-exitcode -var many=150")
    assert api.asked.count("GET /notes") == 2
    assert "155 destroyed" in run("destroy -auto-approve -parallelism=50 -var many=150")
    assert not api.notes


def test_a_provider_block_with_a_value_of_a_resource(world: World, provider: Example, host: str, api: API) -> None:
    """A plan works without the URL where it can; what needs the URL says so."""
    block = URL_OF_A_RESOURCE.replace("URL", api.url.removesuffix("/notes"))
    edit(world, f'provider "notes" {{\n  url = "{api.url}"', block)

    def run(arguments: str, code: int = 0) -> str:
        return provider.run(world, f"'{host}' {arguments} 2>&1", code, cwd=world.folder)

    assert "2 added" in run("apply -auto-approve")
    assert [*api.notes] == ["/first/hello-world"]
    said = run("plan -var folder=second", 1)
    assert "Warning: The note was not read" in said
    assert "The provider block is not known yet: apply what it refers to first" in flat(said)  # from the data source
    run("apply -auto-approve -target=terraform_data.folder -var folder=second")
    assert "1 added" in run("apply -auto-approve -var folder=second")
    assert "/second/hello-world" in api.notes


def test_values_of_all_kinds(world: World, provider: Example, host: str) -> None:
    """Values that are partly known, or null. Where tf lacks something, the provider does what README advises."""
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
    assert "1 added, 2 changed, 1 destroyed" in run("apply -auto-approve -var run=2")  # no value is unknown any more
    run("plan -detailed-exitcode -var run=2")

    (world.folder / "main.tf").write_text((CONFIGURATIONS / "kinds.tf").read_text() + KINDS_THAT_WAIT)
    apply = world.run(host, "apply", "-auto-approve", "-var", "run=2")
    assert eventually((world.folder / "waits").exists)
    apply.send_signal(signal.SIGINT)
    assert "Error: Told to stop" in apply.communicate()[1].decode()


def test_what_tf_lacks(world: World, provider: Example, host: str) -> None:
    """If this fails, tf has a new feature, and README and servicer.py can be shorter."""
    provider.run(world, f".venv/bin/python -c '{WHAT_TF_LACKS}'")


def test_errors_show_the_line(world: World, provider: Example, host: str, api: API) -> None:
    api.notes["/notes/hello-world"] = "not Terraform's"
    said = provider.run(world, f"'{host}' apply -auto-approve 2>&1", 1, cwd=world.folder)
    assert "Error: The note was not created" in said
    assert "hello-world exists" in said
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
    edit(world, f'url = "{api.url}"', 'url = "file:///etc/passwd"')
    said = provider.run(world, f"'{host}' plan 2>&1", 1, cwd=world.folder)
    assert re.search(r"Error: This is no URL of an API\n.*?\d+: +url += ", said, re.DOTALL)
    edit(world, 'url = "file:///etc/passwd"', "url = var.nothing")
    said = provider.run(world, f"'{host}' plan 2>&1", 1, cwd=world.folder)
    assert re.search(r"Error: url is null\n.*?\d+: +url += var.nothing", said, re.DOTALL)


def test_the_log_has_levels(world: World, provider: Example, host: str) -> None:
    world.env |= {"TF_LOG_PROVIDER": "INFO", "TF_LOG_PATH": str(world.folder / "log")}
    provider.run(world, f"'{host}' apply -auto-approve", cwd=world.folder)
    log = (world.folder / "log").read_text()
    assert re.search(r"\[INFO\] +provider.terraform-provider-notes: created: .*note=hello-world", log)
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
    assert "reattachment process not found" in re.sub(r"[│╷╵] ?", "", error)  # the attach line is stale


def test_terraform_is_killed(world: World, provider: Example, host: str, api: API, gate: threading.Event) -> None:
    """The provider leaves with a create in flight. The API makes the note, and the user can import it."""
    apply = world.run(host, "apply", "-auto-approve")
    assert eventually(lambda: api.asked)
    apply.kill()
    assert world.gone()
    gate.set()
    assert eventually(lambda: api.notes)
    assert "Import successful!" in provider.run(
        world, f"'{host}' import -lock=false notes_note.hello hello-world", cwd=world.folder
    )


def test_the_provider_is_killed(world: World, provider: Example, host: str, api: API, gate: threading.Event) -> None:
    """Terraform reports it. Neither a process nor a file is left, and the next apply works."""
    (world.folder / "twelve.tf").write_text(TWELVE_NOTES)
    apply = world.run(host, "apply", "-auto-approve")
    assert eventually(lambda: len(api.asked) == 10)
    for plugin in world.plugins():  # one of them runs for the function
        plugin.kill()
    err = apply.communicate()[1].decode()
    assert apply.returncode == 1
    assert "Plugin did not respond" in err or "plugin failed" in err.lower()
    assert world.gone()
    gate.set()
    assert eventually(lambda: len(api.notes) == 10)
    api.notes.clear()
    assert "13 added" in provider.run(world, f"'{host}' apply -auto-approve", cwd=world.folder)


def test_dist(world: World, provider: Example, host: str, api: API) -> None:
    """The archive of `make dist` works from a mirror, beside another provider, and without Python."""
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
            f'\nprovider "other" {{\n  url = "{api.url}"\n}}\n\nresource "notes_note" "other" {{\n  provider = other\n'
            '  name = "other"\n  text = "x"\n}\n'
        )
    del world.env["TF_CLI_CONFIG_FILE"]
    world.env["HOME"] = str(world.folder)
    provider.run(world, f"'{host}' init", cwd=world.folder)
    lock = (world.folder / ".terraform.lock.hcl").read_text()
    assert re.search(r'provider "example.com/me/notes" {\n  version = "0.1.0"\n  hashes = \[\n    "h1:', lock)
    provider.run(world, f"'{host}' apply -auto-approve", cwd=world.folder)
    assert api.notes["/notes/other"] == "x"
    provider.run(world, f"'{host}' destroy -auto-approve", cwd=world.folder)
    # Without Python: PATH has none, and the venv that built the provider is gone.
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
    assert api.notes == {"/notes/hello-world": "without Python"}
