"""OpenTofu or Terraform on Windows uses the provider of examples/terraform as an .exe."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT, CallError, World, eventually

pytestmark = [
    pytest.mark.windows,
    pytest.mark.skipif(sys.platform != "win32", reason="only for Windows"),
    pytest.mark.timeout(1200),
]


COOKIE = ("TF_PLUGIN_MAGIC_COOKIE", "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2")


def made(folder: Path) -> Path:
    """The archive that `make dist` makes in a copy of the example."""
    shutil.copytree(ROOT / "examples" / "terraform", folder)
    shutil.copytree(ROOT / "goplugin", folder / "goplugin")
    env = dict(os.environ)
    python = sys.executable
    if packages := os.environ.get("GOPLUGIN_TEST_TERRAFORM"):  # under Wine, where there is no venv
        env["PYTHONPATH"] = packages
    else:  # the example's framework needs an older protobuf than the tests
        subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
        python = str(folder / "venv" / "Scripts" / "python.exe")
        requirements = ["-r", "requirements.txt", "cx_Freeze"]
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], cwd=folder, check=True)
    subprocess.run([python, "dist.py", "0.1.0"], cwd=folder, env=env, check=True)
    (archive,) = (folder / "dist").glob("*_windows_amd64.zip")
    return archive


@pytest.fixture
def url() -> Iterator[str]:
    """The URL of the notes in the example's API."""
    server = ROOT / "examples" / "terraform" / "example" / "server.py"
    with subprocess.Popen([sys.executable, str(server), "0"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        yield process.stdout.readline().decode().strip()
        process.kill()


def test_a_provider_in_python(world: World, url: str) -> None:
    built = ROOT / ".hosts" / "tofu.exe"
    tofu = str(built) if built.exists() else shutil.which("terraform")
    if not tofu:
        pytest.skip("tofu.exe and Terraform are missing: sh tests/support/hosts.sh tofu.exe")
    mirror = world.folder.parent / "mirror"
    (mirror / "example.com" / "me" / "notes").mkdir(parents=True)
    shutil.copy(made(world.folder.parent / "provider"), mirror / "example.com" / "me" / "notes")
    settings = mirror / "settings.tfrc"
    where = f'filesystem_mirror {{\n    path = "{mirror.as_posix()}"\n  }}'
    settings.write_text(f"provider_installation {{\n  {where}\n}}\n")
    log = mirror / "log"
    world.env |= {
        "TF_CLI_CONFIG_FILE": str(settings),
        "TF_CLI_ARGS": "-no-color",
        "TF_LOG": "trace",
        "TF_LOG_PATH": str(log),
        "CHECKPOINT_DISABLE": "1",
        "NOTES_TOKEN": "secret",
    }
    del world.env["PYTHONPATH"]  # the program contains all that it needs
    main = (ROOT / "examples" / "terraform" / "example" / "main.tf").read_text()
    (world.folder / "main.tf").write_text(main.replace("http://127.0.0.1:8000/notes", url))

    def run(*arguments: str) -> str:
        process = world.run(tofu, *arguments, stderr=subprocess.STDOUT)
        said: str = process.communicate()[0].decode()
        assert process.returncode == 0, said
        assert eventually(lambda: not world.processes(), 10)
        return said

    run("init")
    run("apply", "-auto-approve")
    assert run("output", "-raw", "note") == "hello-world has 14 characters"
    assert "configuring client automatic mTLS" in log.read_text()
    assert "plugin process exited" in log.read_text()
    assert "plugin failed to exit gracefully" not in log.read_text()
    (program,) = (world.folder / ".terraform").rglob("*.exe")
    host = world.host(cmd=[str(program)], cookie=COOKIE, versions=[6], auto_mtls=True, start_timeout=60)
    host.ask("start")
    for stranger in ("no certificate", "P-256", "P-521"):
        with pytest.raises(CallError):
            host.ask("intrude", method=stranger)
    assert eventually(lambda: sum("refused a caller" in record["@message"] for record in host.log()) == 3)
    host.close()
    folder = (world.folder.parent / "provider" / "build" / "folder").as_posix()
    settings.write_text(
        f'provider_installation {{\n  dev_overrides {{\n    "example.com/me/notes" = "{folder}"\n  }}\n}}\n'
    )
    said = run("destroy", "-auto-approve")
    assert "Provider development overrides are in effect" in said
    assert "1 destroyed" in said
