"""What the house tells of itself: logs on stderr, traces by OpenTelemetry, metrics for Prometheus.

Nothing in here may change what the house does: all of it is bounded, and what cannot be told is dropped.
"""

from server.telemetry.logs import REDACTED, configure_logging, redact

__all__ = ["REDACTED", "configure_logging", "redact"]
