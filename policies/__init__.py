"""The policy room: what an agent may do, decided by a pure function.

Rules are a gate and a record; the sandbox is the boundary.
"""

from policies.engine import decide
from policies.errors import PolicyError
from policies.policy import PRESETS, Policy, load_policy
from policies.types import Decision, Effect, Facts, MatchedRule, SubRequest, ToolRequest, ToolUse

__all__ = [
    "PRESETS",
    "Decision",
    "Effect",
    "Facts",
    "MatchedRule",
    "Policy",
    "PolicyError",
    "SubRequest",
    "ToolRequest",
    "ToolUse",
    "decide",
    "load_policy",
]
