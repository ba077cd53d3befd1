"""Arrays that are kept in memory or in a file: what comes back, and what is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.errors import RunError
from graphprune.healing.spool import Spool

ARRAYS = st.builds(
    lambda shape, kind, seed: np.random.default_rng(seed).integers(0, 99, shape).astype(kind),
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from(["f4", "f8", "i8", "u1", "?"]), st.integers(0, 99),
)  # fmt: skip
DEEDS = st.lists(st.tuples(st.sampled_from(["put", "get", "forget"]), st.integers(0, 6), ARRAYS), max_size=40)


@settings(max_examples=100, deadline=None)
@given(DEEDS, st.sampled_from([0, 100, 10_000]))
def test_what_was_put_comes_back(deeds: list[tuple[str, int, np.ndarray]], memory: int) -> None:
    spool, known = Spool(memory), dict[int, np.ndarray]()
    for deed, key, array in deeds:
        if deed == "put":
            spool.put(key, array)
            known[key] = array
        elif deed == "forget":
            spool.forget(key)
            known.pop(key, None)
        for one, wanted in known.items():
            found = spool.get(one)
            assert found.dtype == wanted.dtype and spool.shape(one) == wanted.shape
            np.testing.assert_array_equal(found, wanted)
        assert all((one in spool) == (one in known) for one in range(7))


def test_places_are_used_again() -> None:
    spool = Spool(0)
    for number in range(50):
        spool.put("one", np.full(100, number, np.float32))
    assert spool._end == 400
    assert spool.get("one")[0] == 49


def test_nothing_stays_behind_a_process_that_is_killed(tmp_path: Path) -> None:
    code = """
import os, signal, numpy as np
from graphprune.healing.spool import Spool
spool = Spool(0)
spool.put(1, np.zeros(100_000))
print(len(os.listdir(os.environ["TMPDIR"])), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    if not hasattr(os, "fork"):
        pytest.skip("on this system a temporary file has a name until its process ends")
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert run.returncode < 0 and not any(tmp_path.iterdir()), run.stderr


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(RunError, match="cannot be kept there: No space left on device"):
        Spool(0).put(1, np.zeros(9))
