"""The resource limits that hold for every process of a sandbox, with or without control groups.

Not among them: ``RLIMIT_AS`` and ``RLIMIT_DATA``. JavaScript engines reserve far more memory than they use (the CLI:
9.9 GB of addresses and 5.6 GB of private mappings for 0.19 GB in use), so a limit that lets it start limits nothing.
Memory is bounded by the control group alone; where there is none, ``oom_score_adj`` has the kernel end sandboxes
before anything else. The number of processes is set by the starter, inside the sandbox's own user namespace, where
it counts the processes of this sandbox only.
"""

from __future__ import annotations

import resource
from typing import Final

from server.sandboxes.base import Limits

_OPEN_FILES: Final = 4096
_QUEUED_MESSAGES: Final = 65_536
_LOCKED_MEMORY: Final = 1 << 20

OOM_SCORE: Final = 800
"""Of 1000: the first to go when the machine itself has no memory left."""

NICENESS: Final = 5
"""How far agents give way to others on the processor, to the server before all: dozens of them would leave it no time
to answer them. On an idle machine it changes nothing. ``RLIMIT_NICE`` keeps them from taking it back."""

CPU_SHARES: Final = 335
"""The same for a control group of version 1, where 1024 is what others have."""


def resource_limits(limits: Limits) -> dict[int, int]:
    """Number of a limit (``RLIMIT_*``) → value, soft and hard alike."""
    return {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: limits.disk_mb << 20,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_MEMLOCK: _LOCKED_MEMORY,
        resource.RLIMIT_MSGQUEUE: _QUEUED_MESSAGES,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
    }
