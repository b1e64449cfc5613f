"""Shell commands taken apart: what can be proved about a script, and what cannot."""
