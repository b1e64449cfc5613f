"""The relay: the program that runs in a cloud sandbox and owns the agent's streams, and what its host shares with it.

Standard library only, Python 3.9 or later: whatever the sandbox's image has. ``frames``, ``link`` and ``mux`` are both
ends of the conversation; the rest runs in the sandbox alone.
"""
