"""The scripted model: a stand-in for the paid Messages API that plays scenarios, for demos and tests without a key."""

from server.gateway.scripted.demo import MEND_PROMPT, WRITE_PROMPT
from server.gateway.scripted.scenario import prompt_with
from server.gateway.scripted.serving import scripted_upstream, serve_scripted

__all__ = ["MEND_PROMPT", "WRITE_PROMPT", "prompt_with", "scripted_upstream", "serve_scripted"]
