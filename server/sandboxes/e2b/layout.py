"""Where things are in a cloud sandbox, and who owns them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Final

from server.sandboxes.base import CLI, CONFIG_DIR, EGRESS_PORT, GATEWAY_SOCKET, WORKSPACE

AGENT: Final = "agent"
AGENT_UID: Final = 1100
"""The agent's user: none that the template brings, for those may become root by ``sudo``."""

HOME: Final = "/home/agent"
RELAY: Final = "/opt/rookery/relay.pyz"
RELAY_SOCKET: Final = "/run/rookery-relay/relay.sock"
STATE: Final = "/var/lib/rookery"
"""Root's alone: logs of the relay, checkpoints."""

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

AGENT_ENVIRONMENT: Final = {"PATH": PATH, "HOME": HOME, "USER": AGENT, "LOGNAME": AGENT, "LANG": "C.UTF-8"}
ROOT_ENVIRONMENT: Final = {"PATH": PATH, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8"}

CONNECT: Final = f"exec python3 -I {RELAY} connect {RELAY_SOCKET}"
"""The command whose standard streams are the wire to the relay."""


def relay_settings(build: str) -> str:
    """The argument of ``relay start``."""
    return json.dumps(
        {
            "socket": RELAY_SOCKET,
            "directory": f"{STATE}/relay",
            "gateway": GATEWAY_SOCKET,
            "config": CONFIG_DIR,
            "egress_port": EGRESS_PORT,
            "uid": AGENT_UID,
            "gid": AGENT_UID,
            "build": build,
        }
    )


CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"


def direct_environment(variables: Mapping[str, str], model_host: str) -> dict[str, str]:
    """An agent's variables for requests that go to the model API without the gateway.

    E2B replaces the placeholder by the key on the way, outside of the sandbox. For that it opens the connection with a
    certificate of its own, which it adds to the system's.
    """
    direct = {name: value for name, value in variables.items() if name != "ANTHROPIC_UNIX_SOCKET"}
    direct.update(
        ANTHROPIC_BASE_URL=f"https://{model_host}",
        ANTHROPIC_API_KEY="placeholder",
        NODE_EXTRA_CA_CERTS=CERTIFICATES,
    )
    return direct


STAMP: Final = f"{RELAY}.build"

STARTED, UPLOAD = "started", "upload"
"""Last word of :func:`preparation`: the relay runs, or must be uploaded first."""

LACKS: Final = 41
"""Exit status of :func:`preparation` when the template lacks a program; its stderr names it."""


SETUP: Final = f"""set -eu
for program in python3 tar git; do
  command -v "$program" >/dev/null || {{ echo "$program" >&2; exit {LACKS}; }}
done
if ! grep -q '^[^:]*:[^:]*:{AGENT_UID}:' /etc/passwd; then
  echo '{AGENT}:x:{AGENT_UID}:{AGENT_UID}::{HOME}:/bin/bash' >> /etc/passwd
  echo '{AGENT}:x:{AGENT_UID}:' >> /etc/group
fi
mkdir -p /opt/rookery {HOME} {STATE} {WORKSPACE}
chown 0:0 /opt/rookery {STATE}
chmod 755 /opt/rookery {WORKSPACE}
chmod 700 {STATE} {HOME}
chown {AGENT_UID}:{AGENT_UID} {HOME} {WORKSPACE}
if ! [ -x {CLI} ]; then
  found=$(command -v claude || true)
  if [ -n "$found" ]; then ln -sf "$(readlink -f "$found")" {CLI}; fi
fi
"""
"""A shell script, run as root: makes the agent's user and the directories. Running it again changes nothing."""


def preparation(build: str) -> str:
    """A shell script, run as root: sets a sandbox up and starts the relay, if it is there.

    Running it again changes nothing. It ends with a word of the two above.

    Args:
        build: of the relay that is to run, unless one runs already.
    """
    return f"""
if python3 -I {RELAY} alive {RELAY_SOCKET} 2>/dev/null; then echo {STARTED}; exit 0; fi
{SETUP}
if [ "$(cat {STAMP} 2>/dev/null || true)" != {build} ]; then echo {UPLOAD}; exit 0; fi
python3 -I {RELAY} start {shlex.quote(relay_settings(build))}
echo {STARTED}
"""
