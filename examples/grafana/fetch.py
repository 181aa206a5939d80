"""Fetches Grafana's .proto file with Go. The file's licence is Apache-2.0, so this project has no copy."""

import json
import shutil
import subprocess
import sys

SDK = "github.com/grafana/grafana-plugin-sdk-go"
VERSION = "v0.299.0"
FILE = "proto/backend.proto"

if not shutil.which("go"):
    sys.exit(
        "Go fetches backend.proto, and there is none: install it (https://go.dev/dl), or put here what is at\n"
        f"https://{SDK}/blob/{VERSION}/{FILE}"
    )
said = subprocess.run(["go", "mod", "download", "-json", f"{SDK}@{VERSION}"], check=True, stdout=subprocess.PIPE).stdout
shutil.copyfile(f"{json.loads(said)['Dir']}/{FILE}", "backend.proto")
