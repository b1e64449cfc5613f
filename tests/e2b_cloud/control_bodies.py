"""What all handlers of the control plane share: bodies, times, refusals."""

from __future__ import annotations

import datetime
import json
from typing import Any

from starlette.requests import Request

from tests.e2b_cloud.cloud import RefusedError


def moment(seconds: float) -> str:
    """A time as the API spells it."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat().replace("+00:00", "Z")


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        RefusedError: 400.
    """
    raw = await request.body()
    try:
        body = json.loads(raw or b"{}")
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is not a JSON object")
    return body
