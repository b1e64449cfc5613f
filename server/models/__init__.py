"""The records of the house: what the store keeps and what the tools answer with.

Records are frozen pydantic models. Money is kept in integer nano-dollars (10⁻⁹ USD), so that sums are exact; only
the outermost answers turn it into dollars. Times are UTC.
"""

from server.models.approvals import ApprovalRecord, ApprovalStatus, PendingApproval
from server.models.base import Failure, Record
from server.models.checkpoints import CheckpointKind, CheckpointRecord
from server.models.costs import NANO_USD, Cost, LedgerEntry, RunningSandbox, SandboxTime, Usage
from server.models.decisions import Decider, DecisionRecord
from server.models.events import Event, EventKind
from server.models.outcomes import Outcome
from server.models.servers import Command, ServerRecord
from server.models.sessions import NOT_COPIED, TRANSITIONS, NotCopied, SessionRecord, SessionState
from server.models.tokens import TokenRecord
from server.models.turns import StopReason, TurnOrigin, TurnRecord

__all__ = [
    "ApprovalRecord",
    "ApprovalStatus",
    "CheckpointKind",
    "CheckpointRecord",
    "Command",
    "Cost",
    "Decider",
    "DecisionRecord",
    "Event",
    "EventKind",
    "Failure",
    "LedgerEntry",
    "NANO_USD",
    "NOT_COPIED",
    "NotCopied",
    "Outcome",
    "PendingApproval",
    "Record",
    "RunningSandbox",
    "SandboxTime",
    "ServerRecord",
    "SessionRecord",
    "SessionState",
    "StopReason",
    "TokenRecord",
    "TRANSITIONS",
    "TurnOrigin",
    "TurnRecord",
    "Usage",
]
