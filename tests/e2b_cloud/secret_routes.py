"""The control plane's secrets: written, looked for, never read again."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.e2b_cloud.cloud import RefusedError
from tests.e2b_cloud.control_bodies import body_of, moment
from tests.e2b_cloud.egress import Egress, Secret


def secret_routes(egress: Egress, owner_of: Callable[[Request], str]) -> list[Route]:
    """The routes; ``owner_of`` says whose request it is, or refuses it."""

    def shown(secret: Secret) -> dict[str, Any]:
        when = moment(secret.made)
        known = {"secretID": secret.identity, "name": secret.name, "currentVersion": 1, "metadata": {}}
        return {**known, "createdAt": when, "updatedAt": when}

    async def create(request: Request) -> Response:
        owner, body = owner_of(request), await body_of(request)
        if (owner, body["name"]) in egress.secrets:
            raise RefusedError(409, f"secret {body['name']} exists already")
        secret = Secret(f"sec_{secrets.token_hex(10)}", body["name"], body["value"])
        egress.secrets[owner, secret.name] = secret
        return JSONResponse(shown(secret), status_code=201)

    async def get(request: Request) -> Response:
        owner, named = owner_of(request), request.path_params["id"]
        for (whose, name), secret in egress.secrets.items():
            if whose == owner and named in (name, secret.identity):
                return JSONResponse(shown(secret))
        raise RefusedError(404, f"secret {named} not found")

    return [Route("/secrets", create, methods=["POST"]), Route("/secrets/{id}", get, methods=["GET"])]
