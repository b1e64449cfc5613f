"""Secrets that open nothing: one of each kind that is kept out of answers and logs."""

from __future__ import annotations

from typing import Final

SECRETS: Final = {
    "Anthropic key": "sk-ant-api03-" + "aB3_-" * 17,
    "OpenAI key": "sk-proj-" + "aB3_" * 12,
    "E2B key": "e2b_" + "0a" * 20,
    "Rookery token": "rky_" + "x" * 43,
    "AWS key": "AKIA" + "ABCD1234" * 2,
    "GitHub token": "ghp_" + "a1" * 18,
    "GitLab token": "glpat-" + "a1" * 10,
    "Slack token": "xoxb-123456789012-abcdefABCDEF",
    "Google key": "AIza" + "a1b2c" * 7,
    "Stripe key": "sk_live_" + "a1" * 12,
    "npm token": "npm_" + "a1" * 18,
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\nbnNz\n-----END OPENSSH PRIVATE KEY-----",
}
