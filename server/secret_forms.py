"""What secrets look like: one list for the answers that leave the house and for its log."""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class SecretForm(NamedTuple):
    """One kind of secret."""

    name: str
    """What it is called."""
    part: str
    """What stands in every one of them."""
    exact: str
    """Its form, by the documentation of who gives it out: only what nothing else looks like."""
    loose: str | None = None
    """What may be one, cut short or of a later form; None: as ``exact``."""


SECRET_FORMS: Final = (
    SecretForm("Anthropic key", "sk-ant-", r"sk-ant-[A-Za-z0-9_-]{16,}", r"sk-ant-[A-Za-z0-9_-]+"),
    SecretForm("OpenAI key", "sk-proj-", r"sk-proj-[A-Za-z0-9_-]{20,}"),
    SecretForm("E2B key", "e2b_", r"e2b_[a-f0-9]{40}", r"e2b_[A-Za-z0-9]{8,}"),
    SecretForm("Rookery token", "rky_", r"rky_[A-Za-z0-9_-]{43}"),
    SecretForm("AWS key", "AKIA", r"AKIA[A-Z0-9]{16}"),
    SecretForm("AWS key", "ASIA", r"ASIA[A-Z0-9]{16}"),
    SecretForm("GitHub token", "github_pat_", r"github_pat_[A-Za-z0-9_]{22,}"),
    SecretForm("GitHub token", "gh", r"gh[oprsu]_[A-Za-z0-9]{36,}"),
    SecretForm("GitLab token", "glpat-", r"glpat-[A-Za-z0-9_-]{20,}"),
    SecretForm("Slack token", "xox", r"xox[abeoprs]-[A-Za-z0-9-]{10,}"),
    SecretForm("Google key", "AIza", r"AIza[A-Za-z0-9_-]{35}"),
    SecretForm("Stripe key", "k_live_", r"[rs]k_live_[A-Za-z0-9]{16,}"),
    SecretForm("npm token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    SecretForm(
        "private key",
        "PRIVATE KEY",
        r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:[^-]|-(?!----END))*(?:-----END[A-Z -]*)?",
    ),
)

_EXACT: Final = re.compile(
    "|".join(rf"(?P<s{at}>(?<![A-Za-z0-9]){form.exact})" for at, form in enumerate(SECRET_FORMS))
)
_LOOSE: Final = re.compile(
    "|".join(
        [
            *(form.loose or form.exact for form in SECRET_FORMS),
            r"(?<=://)[^\s/@:]+:[^\s/@]+(?=@)",  # user and password in a URL
            r"(?i:(?<=bearer\s)|(?<=basic\s))[A-Za-z0-9._~+/=-]{8,}",  # authorization headers
            r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])",  # our own tokens: 256 bits in base64
        ]
    )
)


def named_secrets(text: str) -> str:
    """The text with the kind of each secret in its place. What only may be one stays: an answer in which hashes or
    ids are missing would be useless."""
    return _EXACT.sub(_named, text) if any(form.part in text for form in SECRET_FORMS) else text


def without_secrets(text: str, mark: str) -> str:
    """The text with a mark in the place of all that may be a secret: a log line loses nothing by one too many."""
    return _LOOSE.sub(mark, text)


def _named(match: re.Match[str]) -> str:
    group = match.lastgroup
    assert group is not None, "each alternative is a group"
    return f"[redacted: {SECRET_FORMS[int(group.removeprefix('s'))].name}]"
