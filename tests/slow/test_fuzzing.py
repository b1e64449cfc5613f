"""The readers of untrusted text under a coverage-guided fuzzer; Hypothesis tries the same in the fast tests."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.slow

SECONDS: Final = 120

ROOT: Final = Path(__file__).parents[2]


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed: pip --group fuzz")
def test_no_bytes_break_or_hold_up_the_readers_of_untrusted_text(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzzing", f"-max_total_time={SECONDS}", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS * 5)
    assert done.returncode == 0, done.stderr[-4_000:]
    assert "Done " in done.stderr
