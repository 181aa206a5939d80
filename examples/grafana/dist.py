"""Makes the plugin's folder in Grafana's form: `make launcher` for development, `make dist` for users."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MANIFEST = json.loads((HERE / "plugin.json").read_text(encoding="utf-8"))
ID, EXECUTABLE = MANIFEST["id"], MANIFEST["executable"]
FOLDER = HERE / "dist" / ID  # Grafana's plugin folder gets this one
ADDRESS = "GF_PLUGIN_GRPC_ADDRESS_" + ID.upper().replace("-", "_")  # a variable with HOST:PORT, for standalone.py too

ARCHITECTURES = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
MACHINE = platform.machine()
TARGET = f"{platform.system().lower()}_{ARCHITECTURES.get(MACHINE, MACHINE)}"  # in Go's terms, which Grafana uses

LAUNCHER = """\
#!/bin/sh
# Grafana starts this script. It runs plugin.py, or tells where a plugin runs that a person started with standalone.py.
{{
    read -r address <"${{0%/*}}/standalone.txt"
    read -r pid <"${{0%/*}}/pid.txt"
    address=${{{ADDRESS}:-$address}}
    if [ -n "$address" ] && {{ [ -z "$pid" ] || kill -0 "$pid"; }}; then
        echo "1|2|tcp|$address|grpc"
        # Run until that plugin ends, or Grafana, which reads this output.
        while sleep 1 >&- && {{ [ -z "$pid" ] || kill -0 "$pid"; }} && echo "it runs"; do :; done
        exit
    fi
}} 2>/dev/null
exec "{PYTHON}" "{HERE}/plugin.py" "$0"
"""


def prepare(version: str) -> None:
    """Write the folder without the executables. The front end's build puts its files there too."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    manifest = {**MANIFEST, "info": {**MANIFEST["info"], "version": version}}
    (FOLDER / "plugin.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def launcher() -> None:
    """Write a script that runs this plugin.py, and print how Grafana finds it."""
    prepare(MANIFEST["info"]["version"])
    script = FOLDER / f"{EXECUTABLE}_{TARGET}"
    script.unlink(missing_ok=True)
    script.write_text(LAUNCHER.format(ADDRESS=ADDRESS, PYTHON=sys.executable, HERE=HERE), encoding="utf-8", newline="")
    script.chmod(0o755)
    print(f"export GF_PATHS_PLUGINS='{FOLDER.parent}' GF_PLUGINS_ALLOW_LOADING_UNSIGNED_PLUGINS={ID}")


def dist(version: str) -> None:
    """Add a program for this kind of machine, which needs no Python, and pack the whole folder."""
    prepare(version)
    build, name, library = HERE / "build", f"{EXECUTABLE}_{TARGET}", f"lib_{TARGET}"
    (FOLDER / name).unlink(missing_ok=True)
    shutil.rmtree(FOLDER / library, ignore_errors=True)
    freeze = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=ERROR", "--name", name]
    freeze += ["--distpath", f"{build}", "--workpath", f"{build / 'work'}", "--specpath", f"{build}"]
    subprocess.run([*freeze, "--contents-directory", library, HERE / "plugin.py"], check=True)
    shutil.copytree(build / name, FOLDER, dirs_exist_ok=True, symlinks=True)
    shutil.make_archive(str(FOLDER.parent / f"{ID}-{version}"), "zip", FOLDER.parent, ID)
    print(f"dist/{ID}-{version}.zip, for: {', '.join(sorted(path.name for path in FOLDER.glob(f'{EXECUTABLE}_*')))}")


if __name__ == "__main__":
    launcher() if sys.argv[1] == "launcher" else dist(sys.argv[1])
