"""The launcher's own steps, run in a process of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

ARRANGE = """
import os, sys
from server.sandboxes.bubblewrap.launcher import _arrange_descriptors
base = int(sys.argv[1])
pairs = []
for index in range(6):
    descriptor = os.memfd_create(str(index))
    os.write(descriptor, str(index).encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.dup2(descriptor, base + 5 - index)
    pairs.append((base + 5 - index, 3 + index))
_arrange_descriptors(pairs)
print(*(os.read(3 + index, 1).decode() for index in range(6)))
print(sorted(int(name) for name in os.listdir("/proc/self/fd"))[-1])
"""


@pytest.mark.parametrize("base", [20, 60, 64, 66, 300])
def test_descriptors_keep_apart_whatever_numbers_the_server_had_for_them(base: int) -> None:
    """A busy server's descriptors have high numbers; they must not overwrite each other on their way."""
    done = subprocess.run([sys.executable, "-c", ARRANGE, str(base)], capture_output=True, text=True, check=True)
    contents, last = done.stdout.splitlines()
    assert contents == "0 1 2 3 4 5"
    assert int(last) <= 10
