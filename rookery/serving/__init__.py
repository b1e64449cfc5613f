"""Serving MCP: on the standard streams for one client, over HTTP for many, and what is behind both."""
