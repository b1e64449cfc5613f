"""``rookery install``: Rookery's entry in the configuration of an MCP client."""
