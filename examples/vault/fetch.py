"""Fetches Vault's .proto files, by Go. Their licence is MPL-2.0, so this project has no copy."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

SDK = "github.com/hashicorp/vault/sdk"
VERSION = "v0.20.0"
FILES = [
    "plugin/pb/backend.proto",
    "logical/event.proto",
    "logical/identity.proto",
    "logical/plugin.proto",
    "logical/version.proto",
    "helper/pluginutil/multiplexing.proto",
]

if not shutil.which("go"):
    sys.exit(
        f"Go fetches {', '.join(FILES)}, and there is none: install it (https://go.dev/dl), or put into sdk/ those of\n"
        f"https://github.com/hashicorp/vault/tree/sdk/{VERSION}/sdk"
    )
said = subprocess.run(["go", "mod", "download", "-json", f"{SDK}@{VERSION}"], check=True, stdout=subprocess.PIPE).stdout
for file in FILES:
    Path("sdk", file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(f"{json.loads(said)['Dir']}/{file}", f"sdk/{file}")
