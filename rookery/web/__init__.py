"""HTTP: what stands between a socket and the MCP endpoint, and what is served beside it."""
