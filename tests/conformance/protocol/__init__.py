"""What the MCP conformance suite needs: its fixtures on this server, and the server that has them."""
