"""A secrets engine: accounts for a web server, each with a lease, in a password file that nginx or Apache reads."""

import json
import logging
import secrets
import time
from pathlib import Path

from backend import (
    SECRETS_ENGINE,
    Backend,
    Fields,
    Request,
    Unsupported,
    UserError,
    lease,
    response,
    seconds,
    stored,
)
from htpasswd import Htpasswd
from sdk.plugin.pb import backend_pb2 as pb

_log = logging.getLogger("accounts")  # the records reach Vault's log, with their level


def absolute(path: str) -> str:
    """Read a file's name: the process that Vault starts is in Vault's folder, whatever that is."""
    if not Path(path).is_absolute():
        raise UserError(f"{path} is not an absolute path")
    return path


CONFIG: Fields = {"file": (absolute, None)}
ROLE: Fields = {"ttl": (seconds, 3600), "max_ttl": (seconds, 86400)}


class Accounts(Backend):
    """config has the file, role/NAME the times, and reading creds/NAME makes an account."""

    kind = SECRETS_ENGINE
    root = ("config",)  # who writes it says which file Vault changes

    def handle(self, request: Request) -> pb.Response | None:
        """Answer a request."""
        match (request.operation, *request.path.split("/")):
            case (_, "config"):
                return stored(request, CONFIG)
            case (_, "role", _):
                return stored(request, ROLE)
            case ("read", "creds", name):
                return self.issue(request, name)
            case ("renew", "creds", _):
                return self.renew(request)
            case ("revoke", "creds", _):
                self.remove(request, json.loads(request.vault.secret.internal_data)["account"])
                return None
            case ("rollback", *_):
                self.tidy(request)
                return None
        raise Unsupported

    def issue(self, request: Request, name: str) -> pb.Response:
        """Make an account. Vault keeps the lease, and internal_data with it."""
        role, config = request.storage.get(f"role/{name}"), request.storage.get("config")
        if not role or not config:
            what = f"config file=...: {name} needs it" if role else f"role/{name}: there is none"
            raise UserError(f"vault write {request.vault.mount_point}{what}")
        account, password = f"{name}-{secrets.token_hex(8)}", secrets.token_urlsafe(24)
        # The entry first: if the plugin or Vault is killed before Vault has the lease, tidy() finds the account.
        end = time.time() + role["max_ttl"]
        request.storage.put(f"account/{account}", {"file": config["file"], "end": end})
        Htpasswd(config["file"]).add(account, password)
        _log.info("account added", extra={"account": account})  # never the password
        secret = pb.Secret(
            lease_options=lease(role),
            internal_data=json.dumps({"account": account, "role": name}),
        )
        return response({"username": account, "password": password}, secret=secret)

    def renew(self, request: Request) -> pb.Response:
        """Say how much longer the role allows. Vault knows since when, and never exceeds max_ttl."""
        secret, data = request.vault.secret, json.loads(request.vault.secret.internal_data)
        since = secret.lease_options.issue_time
        role = request.storage.get(f"role/{data['role']}")
        key = f"account/{data['account']}"
        entry = request.storage.get(key)
        if not role or not entry:
            raise UserError(f"the {'account' if role else 'role'} is gone")
        request.storage.put(key, {**entry, "end": since.seconds + role["max_ttl"]})
        secret.lease_options.CopyFrom(lease(role, since))
        return response(None, secret=secret)

    def remove(self, request: Request, account: str) -> None:
        """Remove an account. Vault tries again if this fails, so there may be none any more."""
        key = f"account/{account}"
        if entry := request.storage.get(key):
            Htpasswd(entry["file"]).remove(account)
            request.storage.delete(key)
            _log.info("account removed", extra={"account": account})

    def tidy(self, request: Request) -> None:
        """Remove accounts without a lease: Vault or the plugin was killed before, or Vault gave up revoking it.

        Vault calls this each minute: then those that are past their max_ttl. At `vault secrets disable`, all.
        """
        ending = request.system.Tainted(pb.Empty()).tainted
        for account in request.storage.keys("account/"):
            entry = request.storage.get(f"account/{account}")
            if entry and (ending or entry["end"] < time.time()):
                self.remove(request, account)
