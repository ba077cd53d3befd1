from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune import cli_profile, roofline
from graphprune.cli_common import write_csv
from graphprune.cli_groups import Inputs
from graphprune.cli_profile_json import to_json, to_rows
from graphprune.errors import LoadError, RunError, SaveError
from graphprune.phases import KernelTime, PartTime
from graphprune.play import Source
from graphprune.profiler import profile
from graphprune.roofline import Limit, Peak, computing_us, element_of, limit, limit_of, peak
from graphprune.settings import Settings
from tests import tiny

# 10 GMAC/s (40 in integers), 1 GB/s from memory, 8 GB/s from a cache of 20 KB, 4 GB/s from one of 100 KB.
CACHES = ((20_000, 8e9), (100_000, 4e9))
PEAKS = {"float": Peak(10e9, 1e9, CACHES), "uint8": Peak(40e9, 1e9, CACHES)}


def kernel(
    us: float, macs: float = 0, moved: float = 0, op: str = "MatMul", type: str = "float"
) -> KernelTime:
    return KernelTime("k", op, us, 1, macs, moved, "cpu", type)


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        # 20,000 products take 2 µs, 1,000 bytes 1 µs.
        ([kernel(10, 20_000, 1_000)], Limit(2, 0.2, "compute")),
        ([kernel(10, 20_000, 4_000)], Limit(4, 0.4, "memory")),
        # 16,000 bytes would take 16 µs from memory: they came from a cache, which takes 2.
        ([kernel(10, 0, 16_000)], Limit(2, 0.2, "cache")),
        # 80,000 bytes fit into the second cache, 200,000 into none.
        ([kernel(40, 0, 80_000)], Limit(20, 0.5, "cache")),
        ([kernel(40, 0, 200_000)], Limit(40, 1, "memory")),
        ([kernel(10, 100_000, 16_000)], Limit(10, 1, "compute")),
        # Quicker than the peaks: the time itself.
        ([kernel(10, 200_000)], Limit(10, 1, "compute")),
        ([kernel(1, 0, 16_000)], Limit(1, 1, "cache")),
        # Integers are multiplied four times as fast, whatever the operator takes.
        ([kernel(10, 20_000, op="MatMulInteger", type="uint8")], Limit(0.5, 0.05, "compute")),
        ([kernel(10, 20_000, op="MatMulInteger", type="int8")], Limit(0.5, 0.05, "compute")),
        ([kernel(10, 20_000, op="DynamicQuantizeMatMul")], Limit(0.5, 0.05, "compute")),
        # One after another: 2 of 10, 4 of 10, 0 of 20.
        ([kernel(10, 20_000), kernel(10, 0, 4_000), kernel(20, op="Shape")], Limit(6, 0.15, "memory")),
        ([kernel(5)], Limit(0, 0, "")),
        ([], Limit(0, 0, "")),
    ],
)  # fmt: skip
def test_limits_by_hand(kernels: list[KernelTime], expected: Limit) -> None:
    found = limit(kernels, lambda element: PEAKS["uint8" if "int" in element else element])
    assert (found.us, found.share) == pytest.approx((expected.us, expected.share))
    assert found.bound == expected.bound


amounts = st.floats(0, 1e9)


@given(st.lists(st.builds(kernel, st.floats(1e-3, 1e9), amounts, amounts)))
def test_no_limit_is_above_the_time(kernels: list[KernelTime]) -> None:
    found = limit(kernels, PEAKS.__getitem__)
    assert 0 <= found.share <= 1
    assert found.us <= sum(one.us for one in kernels) * (1 + 1e-9)
    assert sum(computing_us(one, PEAKS.__getitem__) for one in kernels) >= 0


def test_elements_of_what_multiplies_nothing_do_not_matter() -> None:
    assert element_of(kernel(1, 0, 8, "Gather", "int64")) == "float"
    assert element_of(kernel(1, 5, 8, "Einsum", "int64")) == "float"
    assert element_of(kernel(1, 5, 8, "MatMul", "float16")) == "float16"


def test_kernels_elsewhere_have_no_limit() -> None:
    elsewhere = KernelTime("k", "MatMul", 1, 1, 5, 8, "cuda", "float")
    assert limit_of(PartTime("p", 1, 1, 5, 8, (elsewhere,))) is None


def test_peaks_count_products_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which every product takes a nanosecond, and every array 10 µs."""
    ran: list[tuple[int, ...]] = []

    def quickest(session: Any, feeds: dict[str, Any]) -> float:
        shape = feeds["x"].shape
        ran.append(shape)
        (result,) = session.run(feeds).values()
        if len(shape) == 2:
            assert (result == shape[0]).all()  # of ones times ones
            return float(shape[0] ** 3 * 1e-9)
        assert (result == 1).all() or result in (1, 4, 16)  # the array, or the sum of its maxima
        return 1e-5

    for probe in (roofline._macs_per_s, roofline._bytes_per_s):
        probe.cache_clear()
    monkeypatch.setattr(roofline, "_quickest", quickest)
    monkeypatch.setattr(roofline, "_SIZES", (4, 8, 64, 512, 1024))
    monkeypatch.setattr(roofline, "_LARGE", 1 << 12)
    monkeypatch.setattr(roofline, "_CACHED", ((1 << 8, 16), (1 << 10, 4)))
    for element in ("float", "uint8", "double", "float16"):
        ran.clear()
        found = peak(Settings(threads=1), element)
        assert found.macs_per_s == pytest.approx(1e9)
        # 512³ ns are more than 20 ms: nothing larger is tried.
        assert [shape for shape in ran if len(shape) == 2] == [(4, 4), (8, 8), (64, 64), (512, 512)]
        assert found.bytes_per_s == pytest.approx(2 * 4 * (1 << 12) / 1e-5)
        assert [size for size, _ in found.caches] == [1 << 10, 1 << 12]
        assert [speed for _, speed in found.caches] == pytest.approx([2 * (1 << 14) / 1e-5] * 2)
        assert found.cache_bytes_per_s == found.caches[0][1]
    ran.clear()
    assert peak(Settings(threads=1)).macs_per_s and not ran  # once in a process
    for probe in (roofline._macs_per_s, roofline._bytes_per_s):
        probe.cache_clear()


def test_a_real_peak() -> None:
    found = peak(Settings(threads=1))
    assert found == peak(Settings(threads=1, level="basic", memory="lean"))
    assert 1e8 < found.macs_per_s < 1e16 and 1e8 < found.bytes_per_s < 1e14
    assert found.cache_bytes_per_s > 1e8


def test_a_provider_that_is_not_there() -> None:
    with pytest.raises((RunError, LoadError)):
        peak(Settings(("qnn",)))


def read(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.save(tmp_path / "m.onnx", layers=1)
    table = tmp_path / "t.csv"
    cli_profile.profile(path, Inputs(sequence=8), rounds=1, roofline=True, table=table)
    shown = capsys.readouterr().out
    assert "of limit  bound by" in shown and "GMAC/s in float" in shown
    assert shown.splitlines()[-1] == f"wrote {table}"
    rows = read(table)
    blocks = [row for row in rows if not row["part"] and row["where"].startswith("encoder")]
    assert [row["where"] for row in blocks] == ["encoder.0.attention", "encoder.0.ffn"]
    assert all(0 <= float(row["of_limit"]) <= 1 for row in blocks)
    assert {row["where"]: int(row["macs"]) for row in blocks}["encoder.0.ffn"] == 2 * 8 * 8 * 24
    cli_profile.profile(path, Inputs(sequence=8), rounds=1, roofline=True, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert set(told["peaks"]) == {"float"}
    for part in (*told["stacks"], *told["layers"], *told["blocks"], *told["phases"][0]["blocks"]):
        assert 0 <= part["of_limit"] <= 1 and 0 <= part["limit_us"] <= part["us"] * (1 + 1e-9)
    assert [one["id"] for one in told["layers"]] == ["encoder.0"]
    cli_profile.profile(path, Inputs(sequence=8), rounds=1)
    assert "of limit" not in capsys.readouterr().out


def test_figures_without_limits(tmp_path: Path) -> None:
    found = profile(tiny.save(tmp_path / "m.onnx", layers=2), Source(sequence=8), rounds=1)
    told, rows = to_json(found), to_rows(found)
    assert told["peaks"] == {} and "of_limit" not in told["blocks"][0] and "of_limit" not in rows[0]
    for key in ("stacks", "layers", "blocks"):
        assert sum(one["macs"] for one in told[key]) == sum(one["macs"] for one in told["blocks"])
    alone = [row for row in rows if not row["part"]]
    assert sum(row["us"] for row in alone) == pytest.approx(found.total_us)
    write_csv(tmp_path / "t.csv", rows)
    assert len(read(tmp_path / "t.csv")) == len(rows)
    with pytest.raises(SaveError):
        write_csv(tmp_path / "no" / "t.csv", rows)
