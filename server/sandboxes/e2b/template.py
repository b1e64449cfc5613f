"""The template of our sandboxes: an image with what an agent needs, built in E2B's cloud."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from server.sandboxes.e2b.bundle import relay_bundle
from server.sandboxes.e2b.cloud import Cloud
from server.sandboxes.e2b.failures import translated
from server.sandboxes.e2b.layout import RELAY, SETUP, STAMP

if TYPE_CHECKING:
    from e2b import E2B

NODE: Final = "24"
PACKAGES: Final = ("ca-certificates", "curl", "git", "jq", "openssh-client", "procps", "python3", "ripgrep", "tar")
CLI_PACKAGE: Final = "@anthropic-ai/claude-code"


@dataclass(frozen=True)
class TemplatePlan:
    """What a template is made of. Two equal ones give the same template.

    Args:
        name: of the template.
        cli_version: of the Claude Code CLI: the one that the agent SDK was made for.
        cpus: CPU cores of each sandbox.
        memory_mb: memory of each sandbox.
    """

    name: str
    cli_version: str
    cpus: int
    memory_mb: int

    @property
    def digest(self) -> str:
        """Names its content."""
        content = [NODE, PACKAGES, self.cli_version, self.cpus, self.memory_mb, SETUP, relay_bundle().build]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


async def build_template(cloud: Cloud, plan: TemplatePlan, *, say: Callable[[str], None]) -> str:
    """Build a template; its id. E2B keeps the layers that did not change.

    Args:
        say: told of the progress, line by line.

    Raises:
        RookeryError: ``sandbox_unavailable``: the build failed.
    """
    client = await cloud.client()
    bundle = relay_bundle()
    with tempfile.TemporaryDirectory(prefix="rookery-template-") as directory:
        context = Path(directory)
        await anyio.to_thread.run_sync((context / "relay.pyz").write_bytes, bundle.data)
        await anyio.to_thread.run_sync((context / "relay.build").write_text, bundle.build)
        async with translated("build the template"):
            built = await client.AsyncTemplate.build(
                _definition(client, context, plan),
                plan.name,
                tags=[f"content-{plan.digest}"],
                cpu_count=plan.cpus,
                memory_mb=plan.memory_mb,
                on_build_logs=lambda entry: say(entry.message),
            )
    return str(built.template_id)


def _definition(client: E2B, context: Path, plan: TemplatePlan) -> Any:
    template = client.AsyncTemplate(file_context_path=str(context))
    return (
        template.from_node_image(NODE)
        .set_user("root")
        .apt_install(list(PACKAGES))
        .npm_install(f"{CLI_PACKAGE}@{plan.cli_version}", g=True)
        .run_cmd(SETUP, user="root")
        .copy("relay.pyz", RELAY, user="root", mode=0o644)
        .copy("relay.build", STAMP, user="root", mode=0o644)
    )
