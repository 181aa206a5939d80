"""Makes the files by which Terraform finds the provider: `make launcher` for development, `make dist` for users."""

import hashlib
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from provider import PROVIDER

HERE = Path(__file__).resolve().parent
SOURCE = PROVIDER.full_name()  # HOSTNAME/NAMESPACE/TYPE
PROGRAM = f"terraform-provider-{SOURCE.rsplit('/', maxsplit=1)[-1]}"
ARCHITECTURES = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def launcher() -> None:
    """Write a script that runs this plugin.py, and settings with which Terraform uses it without `terraform init`."""
    folder = HERE / "dist" / "launcher"
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / PROGRAM
    command = f'exec "{HERE}/.venv/bin/python" "{HERE}/plugin.py" "$@"'
    script.write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8", newline="")
    script.chmod(0o755)
    overrides = f'dev_overrides {{\n    "{SOURCE}" = "{folder}"\n  }}\n  direct {{}}'
    settings = f"provider_installation {{\n  {overrides}\n}}\n"
    (folder / "terraform.tfrc").write_text(settings, encoding="utf-8", newline="")
    print(f"export TF_CLI_CONFIG_FILE={shlex.quote(str(folder / 'terraform.tfrc'))}")


def dist(version: str) -> None:
    """Build the archive for this kind of machine. Its program needs no Python, and does not unpack itself."""
    system, machine = platform.system().lower(), platform.machine()
    target = f"{system}_{ARCHITECTURES.get(machine, machine)}"
    build, output = HERE / "build", HERE / "dist"
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir()
    freeze = [sys.executable, "-m", "cx_Freeze", "build_exe", "--silent-level=2", "--include-path", HERE]
    # Modules load faster from files than from a zip. cx_Freeze does not see that grpcio imports pkgutil.
    freeze += ["--no-compress", "--includes", "pkgutil"]
    program = ["--script", HERE / "plugin.py", "--target-name", f"{PROGRAM}_v{version}"]
    subprocess.run([*freeze, *program, "--build-exe", build / "folder"], cwd=build, check=True)
    output.mkdir(exist_ok=True)
    name = f"{PROGRAM}_{version}"
    shutil.make_archive(str(output / f"{name}_{target}"), "zip", build / "folder")
    archives = sorted(output.glob(f"{name}_*.zip"))
    sums = [f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  {archive.name}\n" for archive in archives]
    (output / f"{name}_SHA256SUMS").write_text("".join(sums), encoding="utf-8", newline="")
    print(f"dist/{name}_{target}.zip, and its checksum in dist/{name}_SHA256SUMS")


if __name__ == "__main__":
    launcher() if sys.argv[1] == "launcher" else dist(sys.argv[1])
