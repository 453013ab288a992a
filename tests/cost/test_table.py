from __future__ import annotations

import json
import os
import stat

import pytest

from graphopt.cost import table
from graphopt.cost.latency import Timing
from graphopt.cost.table import LatencyTable, cache_folder, cpu_model, machine

TIMING = Timing(
    before_us=100.5, after_us=50.25, ratio=0.5, ratio_low=0.49, ratio_high=0.51, pairs=31
)
OTHER = Timing(before_us=1.0, after_us=2.0, ratio=2.0, ratio_low=1.9, ratio_high=2.1, pairs=9)


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "table.json"
    kept = LatencyTable(path)
    assert kept.get("k") is None
    kept.put("k", TIMING)
    assert kept.get("k") == TIMING
    assert LatencyTable(path).get("k") == TIMING
    assert LatencyTable(path).get("another") is None
    assert [f.name for f in path.parent.iterdir()] == ["table.json"]


def test_the_folder(cache, tmp_path, monkeypatch):
    assert cache_folder() == cache
    LatencyTable().put("k", TIMING)
    assert LatencyTable().get("k") == TIMING
    assert list(cache.iterdir())
    monkeypatch.delenv("GRAPHOPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "graphopt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "graphopt"


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"k": {"before', "[]", "null", "3", '"k"', "\x00\xff", "{'k': 1}"],
)
def test_a_file_that_is_no_table_is_done_without_and_replaced(tmp_path, text):
    path = tmp_path / "table.json"
    path.write_text(text, encoding="latin-1")
    kept = LatencyTable(path)
    assert kept.get("k") is None
    kept.put("k", TIMING)
    assert LatencyTable(path).get("k") == TIMING


@pytest.mark.parametrize("entry", [{}, [], {"before_us": 1.0}, {"surprise": 1.0}, None, 3])
def test_an_entry_that_is_no_timing_is_not_known(tmp_path, entry):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"k": entry}))
    kept = LatencyTable(path)
    assert kept.get("k") is None
    kept.put("k", TIMING)
    assert LatencyTable(path).get("k") == TIMING


def test_two_at_the_same_time_keep_each_others_entries(tmp_path):
    path = tmp_path / "table.json"
    one, other = LatencyTable(path), LatencyTable(path)
    one.put("a", TIMING)
    other.put("b", OTHER)
    one.put("c", TIMING)
    fresh = LatencyTable(path)
    assert [fresh.get(k) for k in "abc"] == [TIMING, OTHER, TIMING]
    # What is known stays as it was read, so that one run sees the same figures throughout.
    assert one.get("b") is None


def test_ones_own_measurement_wins(tmp_path):
    path = tmp_path / "table.json"
    one, other = LatencyTable(path), LatencyTable(path)
    one.put("k", TIMING)
    other.put("k", OTHER)
    assert LatencyTable(path).get("k") == OTHER


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    kept = LatencyTable(folder / "table.json")
    kept.put("k", TIMING)
    assert kept.get("k") == TIMING
    assert not list(folder.iterdir())


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    kept = LatencyTable(tmp_path / "file" / "table.json")
    kept.put("k", TIMING)
    assert kept.get("k") == TIMING


@pytest.mark.parametrize("fails", ["replace", "dump"])
def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, fails):
    path = tmp_path / "table.json"
    LatencyTable(path).put("old", OTHER)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "replace") if fails == "replace" else (table.json, "dump")), full)
    kept = LatencyTable(path)
    kept.put("k", TIMING)
    assert kept.get("k") == TIMING
    assert [f.name for f in tmp_path.iterdir() if f.name != "cache"] == ["table.json"]
    assert LatencyTable(path).get("old") == OTHER


def test_the_machine_names_the_cpu_and_the_runtime():
    import onnxruntime

    assert machine() == f"{cpu_model()} / onnxruntime {onnxruntime.__version__}"
    assert cpu_model()
