"""What all records are, and the error among them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from server.errors import ErrorCode, RookeryError


class Record(BaseModel):
    """Base of all records: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Failure(Record):
    """An error as a caller sees it."""

    code: ErrorCode = Field(description="what went wrong, of a closed set")
    message: str = Field(description="what happened and what to do")
    retryable: bool = Field(description="whether the same call may succeed later")

    @classmethod
    def of(cls, error: RookeryError) -> Failure:
        return cls(code=error.code, message=error.message, retryable=error.retryable)
