"""The command line: `python -m goplugin` lists the commands. The modules new, protos and check do the work."""

import argparse
import importlib.metadata
import json
import platform
import ssl
import sys
from collections.abc import Sequence

from goplugin import new, protos
from goplugin.check import FAILED, Check
from goplugin.handshake import HandshakeConfig
from goplugin.hosts import HOSTS
from goplugin.version import __version__

PACKAGES = ("grpcio", "grpcio-health-checking", "grpcio-reflection", "protobuf", "cryptography", "pygrpc-native")


def check(arguments: Sequence[str]) -> int:
    """Check a plugin. Return 0 if no check failed, 1 if one did. SystemExit, with 2, for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m goplugin check", description=COMMANDS["check"][1])
    host = parser.add_mutually_exclusive_group(required=True)
    host.add_argument("--host", choices=HOSTS, metavar="NAME", help=f"the plugin's host: {', '.join(HOSTS)}")
    host.add_argument("--cookie", metavar="KEY=VALUE", help="the magic cookie of another host")
    parser.add_argument("--versions", help="the app protocol versions that the host offers: 1, or 5,6")
    parser.add_argument("--timeout", type=float, default=30, help="seconds for the plugin to start")
    parser.add_argument("--json", action="store_true", help="print one JSON object per check")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND", help="the command that starts the plugin")
    options = parser.parse_args(arguments)
    if options.host:
        handshake, auto_mtls = HOSTS[options.host]
    else:
        key, _, value = options.cookie.partition("=")
        if not (key and value):
            parser.error("--cookie needs KEY=VALUE, such as BASIC_PLUGIN=hello")
        handshake, auto_mtls = HandshakeConfig([1], key, value), None
    try:
        if options.versions is not None:
            handshake = handshake._replace(protocol_versions=[int(text) for text in options.versions.split(",")])
    except ValueError:
        parser.error(f"--versions needs numbers separated by commas, such as 5,6, not {options.versions!r}")
    failed = False
    try:
        for result in Check(options.command, handshake, options.timeout, auto_mtls=auto_mtls).run():
            failed |= result.outcome == FAILED
            if options.json:
                print(json.dumps(result._asdict()), flush=True)
            else:
                print(f"{result.outcome:6}  {result.check}: {result.text}", flush=True)
                if result.cure:
                    print(f"        -> {result.cure}", flush=True)
    except (FileNotFoundError, PermissionError) as error:
        parser.error(f"cannot run the command: {error}")
    return int(failed)


def versions(arguments: Sequence[str]) -> int:
    """Print the versions of goplugin, Python, the packages that a plugin uses, and the system. Return 0."""
    parser = argparse.ArgumentParser(prog="python -m goplugin versions", description=COMMANDS["versions"][1])
    parser.parse_args(arguments)
    print("goplugin", __version__)
    print(platform.python_implementation(), platform.python_version())  # such as CPython 3.14.0
    for package in PACKAGES:
        try:
            print(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            print(package, "is not installed")
    print(ssl.OPENSSL_VERSION)
    print(platform.platform())
    return 0


COMMANDS = {
    "new": (new.main, "start a plugin of your own"),
    "protos": (protos.main, "generate the Python code for your .proto files"),
    "check": (check, "play a plugin's host, and report what works and what does not"),
    "versions": (versions, "print the versions of goplugin, Python and packages, for a bug report"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        return COMMANDS[name][0](rest)
    asked = name in ("-h", "--help")
    for line in (
        *([] if asked else [f"Unknown command {name!r}. The commands are:"]),
        *(f"python -m goplugin {command:8}  {purpose}" for command, (_, purpose) in COMMANDS.items()),
    ):
        print(line, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
