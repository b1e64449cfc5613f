"""One server for all clients of a user's home, behind a Unix socket, and the shim that leads to it.

``rookery connect`` is what MCP clients start. It finds the home's daemon, or starts it, and from then on only carries
bytes. The agents belong to the daemon, so they work on when a client closes, and every client sees the same sessions.
"""
