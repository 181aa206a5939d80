"""Makes a new project with a working plugin, for you to change.

python -m goplugin new notes
"""

import argparse
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from goplugin.hosts import HOSTS
from goplugin.version import __version__

HERE = Path(__file__).resolve().parent
# The files come from goplugin's own project. pyproject.toml puts them into the wheel, in template/.
SOURCE = HERE / "template" if (HERE / "template").exists() else HERE.parent
# Files that are not copied. The packages in requirements.txt go to pyproject.toml.
SKIPPED = shutil.ignore_patterns("__pycache__", ".*_cache", "template", "requirements.txt")
SCRIPTS = ("dist", "fetch", "standalone")  # modules of examples that are not installed: people run them in the folder
COOKIE = "BASIC_PLUGIN=hello"
HANDSHAKE = '(protocol_versions=[1], magic_cookie_key="BASIC_PLUGIN", magic_cookie_value="hello")'
PROGRAMS = {"grafana": "gpx_", "terraform": "terraform-provider-", "tflint": "tflint-ruleset-"}  # for hosts
OLDEST_PYTHON = {"terraform": "3.11"}  # its framework needs it


def requirements(path: Path) -> list[str]:
    """Return the packages that this requirements file names; [] if it does not exist."""
    return re.findall(r"^\w.*", path.read_text(encoding="utf-8"), re.MULTILINE) if path.exists() else []


def modules(origin: Path) -> re.Pattern[str]:
    """Return a pattern that matches the names of the example's modules, in file names and imports.

    All packages in a venv share one space of names, so the project's name goes in front of each.
    """
    stems = sorted({path.stem for path in origin.glob("*.py")}.difference(SCRIPTS))
    names = "|".join(stem for stem in stems if "_pb2" not in stem)
    return re.compile(rf"\b(?:{names})(?=\.py\b)|(?<=^from )(?:{names})(?= import)", re.MULTILINE)


def make(folder: Path, origin: Path, name: str, filled: Mapping[str, str], *, copy: bool) -> None:
    """Write the project's files. origin: the folder with plugin.py. filled: replacements, by the text they replace."""
    plugin = (origin / "plugin.py").read_text(encoding="utf-8")
    library, own = requirements(SOURCE / "requirements.txt"), requirements(origin / "requirements.txt")
    goplugin = library if copy else [f"goplugin[reflection]>={__version__}"]
    developing = requirements(SOURCE / "requirements-dev.txt")
    if "import goplugin" in plugin:
        own = goplugin + [package for package in own if package not in library]
    else:  # only its tests need goplugin
        developing += goplugin
    program = PROGRAMS.get(origin.name, "")
    program += name.removeprefix(program)
    renamed, prefix = modules(origin), re.sub(r"[-_.]+", "_", name).lower().removesuffix("_plugin")
    filled = {
        "PROJECT_NAME": name,
        "PROGRAM_NAME": program,
        "MODULE_PREFIX": prefix,
        '">=3.10"': f'">={OLDEST_PYTHON.get(origin.name, "3.10")}"',
        '"DEPENDENCIES"': ", ".join(map(json.dumps, own)),
        '"DEVELOPING"': ", ".join(map(json.dumps, developing)),
        **({} if copy else {" goplugin/ stays as it is.": ""}),
        **filled,
    }

    def write(source: str | Path, target: str | Path) -> None:
        text = Path(source).read_text(encoding="utf-8").replace("gpx_sensors", program)  # examples/grafana's
        text = renamed.sub(rf"{prefix}_\g<0>", text)
        for before, after in filled.items():
            text = text.replace(before, after)
        path = Path(target).with_name(renamed.sub(rf"{prefix}_\g<0>", Path(target).name))
        path.write_text(text, encoding="utf-8", newline="")
        shutil.copymode(source, path)

    (folder / "tests").mkdir(parents=True)
    for service in re.findall(r"^import (\w+_pb2)$", plugin, re.MULTILINE):
        for path in (*SOURCE.glob(f"{service.removesuffix('_pb2')}.proto"), *SOURCE.glob(f"{service}*.py*")):
            write(path, folder / path.name)
    for file in ("venv.mk", "plugin.py", "tests/test_plugin.py"):
        write(SOURCE / file, folder / file)
    for source in (SOURCE / "starter", *([origin] if origin != SOURCE else [])):
        shutil.copytree(source, folder, ignore=SKIPPED, copy_function=write, dirs_exist_ok=True)
    if copy:
        shutil.copytree(HERE, folder / "goplugin", ignore=SKIPPED)


def plugin(example: str | None) -> str:
    """Return the text of the example's plugin.py; without an example, of goplugin's own."""
    return (SOURCE / (f"examples/{example}" if example else "") / "plugin.py").read_text(encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Run the command line. Return 0. SystemExit, with 2, for wrong arguments."""
    examples = sorted(path.parent.name for path in SOURCE.glob("examples/*/plugin.py"))
    parser = argparse.ArgumentParser(prog="python -m goplugin new", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="an empty folder, or a new one")
    parser.add_argument("--from", dest="example", metavar="EXAMPLE", help=f"start from {', '.join(examples)}")
    parser.add_argument("--name", help="the project's name; by default DIR's")
    host = parser.add_mutually_exclusive_group()
    host.add_argument("--host", choices=HOSTS, metavar="HOST", help=f"your host: {', '.join(HOSTS)}")
    host.add_argument("--cookie", default=COOKIE, metavar="KEY=VALUE", help="the magic cookie of another host")
    parser.add_argument("--protocol-version", type=int, action="append", metavar="N", help="repeat it for several")
    parser.add_argument("--copy", action="store_true", help="copy goplugin/ in, instead of depending on it")
    options = parser.parse_args(arguments)
    folder, name = options.folder, options.name or options.folder.resolve().name
    if not (SOURCE / "starter").exists():
        parser.error(f"{HERE} is a copy without the files for new projects: run an installed goplugin")
    if options.example and options.example not in examples:
        parser.error(f"there is no example {options.example!r}: --from is one of {', '.join(examples)}")
    if not re.fullmatch(r"[A-Za-z]([\w.-]*[A-Za-z0-9])?", name, re.ASCII) or name.lower() in ("goplugin", "test"):
        parser.error(
            f"{name!r} cannot be the project's name: choose one with --name, of letters, digits, '-', '_', '.'"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        parser.error(f"{folder} exists already: choose a new folder, or an empty one")
    key, _, value = options.cookie.partition("=")
    if not (key and value):
        parser.error(f"--cookie needs KEY=VALUE, such as {COOKIE}")
    offered: Sequence[int] = [1]
    if options.host:
        offered, key, value = HOSTS[options.host].handshake
        theirs = (example for example in examples if f'"{key}"' in plugin(example))
        options.example = options.example or next(theirs, None)
    origin = SOURCE / "examples" / options.example if options.example else SOURCE
    own, filled = plugin(options.example), {}
    if options.protocol_version or options.cookie != COOKIE or (options.host and f'"{key}"' not in own):
        if HANDSHAKE not in own:
            parser.error(f"{options.example} has its own cookie and versions: change them in its plugin.py")
        versions = f"protocol_versions={options.protocol_version or [*offered]}"
        cookie = f"magic_cookie_key={json.dumps(key)},\n    magic_cookie_value={json.dumps(value)}"
        filled = {HANDSHAKE: f"(\n    {versions},\n    {cookie},\n)"}
    try:
        make(folder, origin, name, filled, copy=options.copy)
    except OSError as error:
        parser.error(f"cannot write the project: {error}")
    steps = (folder / "README.md").read_text(encoding="utf-8").partition("\n1. ")[2].partition("\n\n")[0]
    print(f"{folder} has a working plugin. Its README.md says how to run it, and how to make it yours:")
    print(f"1. {steps}")
    return 0
