"""The oracle agrees with every export, before anything is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.oracle import Oracle
from tools.zoo import Entry, NotExportableError, entries
from tools.zoo_feeds import make_feeds

MAIN = {"logits", "last_hidden_state", "logits_per_image"}


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _pasts(session: ort.InferenceSession) -> list[int]:
    """The cache lengths to try: none, some, or (merged) both."""
    cached = any(value.name.startswith("past") for value in session.get_inputs())
    merged = any(value.name == "use_cache_branch" for value in session.get_inputs())
    return [0, 3] if merged else [3] if cached else [0]


def _batch(entry: Entry) -> int:
    """ONNX Runtime wants the rotary tables of opset 23 per row, and dynamo exports them for one."""
    return 1 if entry.exporter == "dynamo@23" else 2


def _params() -> list[object]:
    slow = pytest.mark.matrix
    fast = {entry.id for entry in entries(fast=True)}
    return [pytest.param(e, id=e.id, marks=[] if e.id in fast else slow) for e in entries()]


@pytest.mark.parametrize("entry", _params())
def test_torch_and_export_agree(entry: Entry) -> None:
    try:
        files = entry.files()
    except NotExportableError as refusal:
        pytest.skip(f"not exportable: {str(refusal)[:200]}")
    oracle = Oracle(entry)
    for file in files:
        session = _session(file)
        for past in _pasts(session):
            feeds = make_feeds(session, batch=_batch(entry), past=past)
            names = [value.name for value in session.get_outputs()]
            got = dict(zip(names, session.run(None, feeds), strict=True))
            expected = oracle.run(file.stem, feeds)
            assert set(got) & set(expected) & MAIN, f"{sorted(got)} against {sorted(expected)}"
            for name in set(got) & set(expected):
                if file.stem.endswith("_merged") and past and ".encoder." in name:
                    continue  # the cached branch of a merged decoder puts out dummies here
                np.testing.assert_allclose(got[name], expected[name], 1e-4, 1e-4, err_msg=f"{file} {name}")
