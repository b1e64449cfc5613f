"""What ``rookery doctor`` says about E2B: the key, the template, the room that the plan leaves."""

from __future__ import annotations

from typing import Final

from server.errors import RookeryError
from server.sandboxes.base import Check
from server.sandboxes.e2b.cloud import Cloud
from server.sandboxes.e2b.options import E2BOptions, Traffic

KEY_REMEDY: Final = "export E2B_API_KEY=…   (from https://e2b.dev/dashboard)"


async def probe(cloud: Cloud, options: E2BOptions) -> list[Check]:
    """Look at the account. Makes no sandbox, for that costs money. Never raises."""
    if not options.api_key:
        return [Check("e2b key", False, "E2B_API_KEY is not set", KEY_REMEDY)]
    checks: list[Check] = []
    try:
        running, own = await cloud.count_running(), len(await cloud.list())
    except RookeryError as error:
        return [Check("e2b key", False, error.message, KEY_REMEDY)]
    checks.append(Check("e2b key", True, "E2B takes the key"))
    checks.append(await _template(cloud, options))
    found = f"{running} of {options.concurrency} sandboxes run in the account, {own} exist of this home"
    if running >= options.concurrency:
        remedy = "End sessions that are not needed, or set ROOKERY_E2B_CONCURRENCY to what the plan allows."
        checks.append(Check("e2b quota", False, found, remedy))
    else:
        checks.append(Check("e2b quota", True, found))
    if options.traffic is Traffic.DIRECT:
        checks.append(await _secret(cloud, options))
    return checks


async def _template(cloud: Cloud, options: E2BOptions) -> Check:
    try:
        exists = await cloud.template_exists(options.template)
    except RookeryError as error:
        return Check("e2b template", False, error.message)
    if exists:
        return Check("e2b template", True, f"{options.template} exists")
    return Check("e2b template", False, f"there is no template {options.template}", "rookery e2b build")


async def _secret(cloud: Cloud, options: E2BOptions) -> Check:
    name, remedy = options.secret or "", "Make the secret in E2B, and name it in ROOKERY_E2B_SECRET."
    try:
        if name and await cloud.secret_exists(name):
            return Check("e2b secret", True, f"{name} exists")
    except RookeryError as error:
        return Check("e2b secret", False, error.message, remedy)
    return Check("e2b secret", False, f"there is no secret {name!r}", remedy)
