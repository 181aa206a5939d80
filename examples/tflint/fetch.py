"""Fetches tflint's .proto file with Go. The file's licence is MPL-2.0, so this project has no copy."""

import json
import shutil
import subprocess
import sys

SDK = "github.com/terraform-linters/tflint-plugin-sdk"
VERSION = "v0.25.0"
FILE = "plugin/internal/proto/tflint.proto"

if not shutil.which("go"):
    sys.exit(
        "Go fetches tflint.proto, and there is none: install it (https://go.dev/dl), or put here what is at\n"
        f"https://{SDK}/blob/{VERSION}/{FILE}"
    )
said = subprocess.run(["go", "mod", "download", "-json", f"{SDK}@{VERSION}"], check=True, stdout=subprocess.PIPE).stdout
shutil.copyfile(f"{json.loads(said)['Dir']}/{FILE}", "tflint.proto")
