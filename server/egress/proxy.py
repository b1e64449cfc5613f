"""The egress proxy of one server process: an outlet for each agent whose policy has a network."""

from __future__ import annotations

from anyio.abc import TaskGroup

from server.egress.options import EgressOptions
from server.egress.outlet import EgressOutlet


class EgressProxy:
    """Opens outlets.

    Args:
        tasks: where their work runs; outlives them all.
        options: how they reach the outside.
    """

    def __init__(self, tasks: TaskGroup, options: EgressOptions) -> None:
        self._tasks = tasks
        self.options = options

    def open(self) -> EgressOutlet:
        """A new outlet, which refuses everything until its ``allow`` is called; the caller closes it."""
        return EgressOutlet(self._tasks, self.options)
