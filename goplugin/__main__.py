"""The command line: `python -m goplugin check`. The checks themselves are in check.py."""

import argparse
import json
import sys
from collections.abc import Sequence

from goplugin.check import FAILED, Check
from goplugin.handshake import HandshakeConfig


def main(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code is 0 if nothing failed, 1 if something did, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m goplugin")
    commands = parser.add_subparsers(required=True, metavar="check")
    check = commands.add_parser("check", help="play a host, and say what works and what does not")
    check.add_argument("--cookie", required=True, metavar="KEY=VALUE", help="the magic cookie of the plugin's host")
    check.add_argument("--versions", default="1", help="the app protocol versions that the host offers: 1, or 5,6")
    check.add_argument("--timeout", type=float, default=30, help="seconds that the plugin has to start")
    check.add_argument("--json", action="store_true", help="one JSON object per check")
    check.add_argument("command", nargs="+", metavar="-- COMMAND", help="what starts the plugin")
    options = parser.parse_args(arguments)
    key, separator, value = options.cookie.partition("=")
    if not (key and separator and value):
        parser.error("--cookie needs KEY=VALUE, such as BASIC_PLUGIN=hello")
    try:
        versions = [int(text) for text in options.versions.split(",")]
    except ValueError:
        parser.error(f"--versions needs numbers with commas between, not {options.versions!r}")
    failed = False
    try:
        for result in Check(options.command, HandshakeConfig(versions, key, value), options.timeout).run():
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
