"""A local double of the E2B cloud that the real, unmodified SDK talks to.

It speaks E2B's wire protocol on loopback: the control plane on one origin, every sandbox's envd on a second one. Behind
it are real processes: one bubblewrap machine per sandbox, with one process namespace, a file tree of its own, no
network, and several users that are really apart. What it does not have: memory snapshots (a pause stops the processes,
a fork or snapshot copies the disk and boots anew), an edge with TLS, metered quotas, pseudo terminals.

Start it with ``python -m tests.e2b_cloud``; tests use the fixture ``e2b_cloud`` (:mod:`tests.e2b_cloud.fixture`).
"""
