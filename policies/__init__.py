"""The policy room: what an agent may do, decided by a pure function.

Rules are a gate and a record; the sandbox is the boundary.
"""

from policies.engine import decide
from policies.errors import PolicyError
from policies.layer import Limits
from policies.loader import PRESETS, load_policy, parse_policy, policy_names
from policies.policy import Policy, combine
from policies.types import Decision, Effect, Facts, MatchedRule, SubRequest, ToolRequest, ToolUse

__all__ = [
    "PRESETS",
    "Decision",
    "Effect",
    "Facts",
    "Limits",
    "MatchedRule",
    "Policy",
    "PolicyError",
    "SubRequest",
    "ToolRequest",
    "ToolUse",
    "combine",
    "decide",
    "load_policy",
    "parse_policy",
    "policy_names",
]
