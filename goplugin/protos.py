"""Generates Python code for the .proto files below this folder. It works with the installed protobuf and newer ones.

python -m goplugin protos
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

OTHERS = ("goplugin", "tests", "bench", "build", "dist")  # folders whose .proto files are not the plugin's


def find(folder: Path) -> Iterator[Path]:
    """Yield the .proto files of a project, relative to its folder."""
    for root, folders, files in os.walk(folder):
        venvs = [name for name in folders if Path(root, name, "pyvenv.cfg").exists()]
        skipped = {*venvs, *(OTHERS if Path(root) == folder else ())}
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        yield from sorted(Path(root, name).relative_to(folder) for name in files if name.endswith(".proto"))


def main(arguments: Sequence[str]) -> int:
    """Run the command line. Return the generator's exit code. SystemExit, with 2, if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m goplugin protos", description=__doc__.partition("\n")[0])
    parser.parse_args(arguments)
    files = list(find(Path()))
    if not files:
        parser.error("there is no .proto file in this folder: put your host's .proto files here")
    if not importlib.util.find_spec("grpc_tools"):
        parser.error("the generator is missing: python -m pip install grpcio-tools")
    # In buf's layout, other files import proto/notes/v1/notes.proto as notes/v1/notes.proto. In go-plugin's layout,
    # they import proto/notes.proto by that name.
    by_buf = Path("proto").is_dir() and not any(Path("proto").glob("*.proto"))
    roots = ["-Iproto", "-I."] if by_buf else ["-I."]
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        *roots,
        "--python_out=.",
        "--pyi_out=.",
        "--grpc_python_out=.",
    ]
    code = subprocess.run([*command, *files], check=False).returncode
    if code == 0:
        print("Generated the code for", ", ".join(file.as_posix() for file in files))
    return code
