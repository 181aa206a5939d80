"""An auth method: people log in to Vault with a name and a password, which this mount keeps."""

import base64
import hashlib
import hmac
import json
import os

from backend import (
    AUTH_METHOD,
    Backend,
    Fields,
    Request,
    Unsupported,
    UserError,
    lease,
    response,
    seconds,
    stored,
    texts,
)
from sdk.logical import identity_pb2
from sdk.plugin.pb import backend_pb2 as pb


def hashed(password: str, salt: bytes | None = None) -> str:
    """Read a password: what is kept of it is a salt and a slow hash."""
    salt = salt or os.urandom(16)
    return base64.b64encode(salt + hashlib.scrypt(str(password).encode(), salt=salt, n=2**14, r=8, p=1)).decode()


USER: Fields = {
    "password": (hashed, None),
    "policies": (texts, []),
    "ttl": (seconds, 3600),
    "max_ttl": (seconds, 86400),
}
NOBODY = hashed("")


class People(Backend):
    """user/NAME says who may log in, and writing to login/NAME does it."""

    kind = AUTH_METHOD
    unauthenticated = ("login/*",)

    def handle(self, request: Request) -> pb.Response | None:
        """Answer a request."""
        match (request.operation, *request.path.split("/")):
            case ("read", "user", _):
                user = request.storage.get(request.path)
                return response({**user, "password": "(set)"}) if user else None
            case (_, "user", _):
                return stored(request, USER)
            case ("create" | "update", "login", name):
                return self.login(request, name)
            case ("renew", "login", name):
                return self.renew(request, name)
        raise Unsupported

    def login(self, request: Request, name: str) -> pb.Response:
        """Say what a new token may do. Vault makes it, and keeps its lease."""
        user = request.storage.get(f"user/{name}")
        known = user["password"] if user else NOBODY  # a name that is not known takes as long as one that is
        given = hashed(request.data.get("password", ""), base64.b64decode(known)[:16])
        if not hmac.compare_digest(known, given) or not user:
            raise UserError("wrong name or password")
        auth = pb.Auth(
            lease_options=lease(user),
            policies=user["policies"],
            display_name=name,
            alias=identity_pb2.Alias(name=name),  # Vault's identity: the person behind tokens of several auth methods
            internal_data=json.dumps({"policies": user["policies"]}),  # it comes back with the request to renew
        )
        return response(None, auth=auth)

    def renew(self, request: Request, name: str) -> pb.Response:
        """Say how much longer the token may live: not at all if the user is gone, or has other policies."""
        user, auth = request.storage.get(f"user/{name}"), request.vault.auth
        if not user or user["policies"] != json.loads(auth.internal_data)["policies"]:
            raise UserError("log in again: the user has changed")
        auth.lease_options.CopyFrom(lease(user, auth.lease_options.issue_time))
        return response(None, auth=auth)
