"""The MCP surface: one small function for each tool, by theme, above the registry. No business logic lives here."""
