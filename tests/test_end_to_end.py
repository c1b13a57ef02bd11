"""Benchmarks that start from files, at toy size on the CPU: both sides say the same, and what is made of numbers."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import end_to_end, gauges, memory_loop, videos
from merfast import bundle as bundles
from merfast.errors import UnavailableError

for module in ("transformers", "matplotlib"):
    pytest.importorskip(module, reason="needs pip install 'merfast[transformers,demo]'")

SMALL = (320, 240, 0.6)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the benchmarks share."""
    return tmp_path_factory.mktemp("work")


def test_both_sides_say_the_same_of_the_same_files(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--size", "tiny", "--runtime", "torch", "--clips", "3", "--passes", "2", "--most-seconds", "0"]
    assert end_to_end.main([*options, "--work", str(work), "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["posterior_difference"] <= 1e-4
    assert written["valence_difference"] <= 1e-3
    assert written["posterior_range"] > 0.2
    assert written["clips_per_second"] > 0
    assert [len(rates) for rates in written["rates"].values()] == [1, 1]  # the time was over after a turn each
    assert written["speed_up"] == pytest.approx(written["clips_per_second"] / written["reference_clips_per_second"])
    assert written["unseen"] == "the device is the CPU"
    assert written["limit"] == "unknown"
    assert "encode voice" in written["plan"]
    (row,) = written["headlines"]
    assert row.keys() == {"what", "result", "against"}
    assert "720p H.264" in row["what"]
    assert len(list((work / "clips").glob("*-1280x720-4s.mp4"))) == 3


def test_a_loop_of_clips_is_looked_at_after_each_call(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--size", "tiny", "--runtime", "torch", "--clips", "14", "--most", "3", "--files", "2", "--short"]
    assert memory_loop.main([*options, "--work", str(work), "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    looks = written["looks"]
    assert looks[-1]["clips"] == 14
    assert len(looks) >= 5
    assert written["growth"].keys() == {"resident", "threads", "files"}
    assert all(look["resident"] > 100 and look["threads"] >= 1 and look["files"] >= 3 for look in looks)
    assert written["growth"] == pytest.approx(memory_loop.growth(looks))
    assert written["flat"] == (not memory_loop.rising(written["growth"]))


def looks(**values: list[float]) -> list[dict[str, float]]:
    rows = zip(*values.values(), strict=True)
    return [{"clips": 10.0 * (i + 1), **dict(zip(values, row, strict=True))} for i, row in enumerate(rows)]


def test_growth_is_that_of_a_line_after_the_first_fifth() -> None:
    settled = [5000.0, 4000.0, *[1000.0] * 8]  # what it takes to get going does not count
    leaking = [100.0 + 10 * i for i in range(10)]
    found = memory_loop.growth(looks(resident=settled, files=leaking))
    assert found == pytest.approx({"resident": 0.0, "files": 100.0})
    assert memory_loop.rising(found) == ["files"]
    assert memory_loop.rising({"gpu reserved": -500.0, "gpu used": float("nan")}) == ["gpu used"]
    wavy = [1000.0 + 20 * (-1) ** i for i in range(10)]
    assert not memory_loop.rising(memory_loop.growth(looks(resident=wavy)))


def test_too_few_looks_tell_nothing() -> None:
    with pytest.raises(ValueError, match="got 2, expected 3"):
        memory_loop.growth(looks(resident=[1.0, 1.0]))


def test_a_process_that_grows_is_seen() -> None:
    gpu, kept, seen = gauges.Gpu("cpu"), [], []
    files = []
    for i in range(10):
        kept.append(np.ones(4_000_000))  # 30 MiB
        files.append(open(__file__))  # noqa: SIM115
        seen.append({"clips": float(i + 1), **gauges.footprint("cpu", gpu)})
    for file in files:
        file.close()
    found = memory_loop.growth(seen)
    assert found["files"] == pytest.approx(10, abs=0.5)
    assert found["resident"] == pytest.approx(305, abs=60)
    assert {"files", "resident"} <= set(memory_loop.rising(found))


def test_clips_differ_and_show_one_face_each(tmp_path: Path) -> None:
    files = videos.write_videos(tmp_path, [SMALL, SMALL, (240, 320, 0.4)])
    before = [file.stat().st_mtime_ns for file in files]
    assert videos.write_videos(tmp_path, [SMALL, SMALL, (240, 320, 0.4)]) == files
    assert [file.stat().st_mtime_ns for file in files] == before
    config = bundles.read_config(bundles.packaged())
    windows = [videos.read_windows(file, config, None, threads=1) for file in files]
    for (window,), seconds in zip(windows, (0.6, 0.6, 0.4), strict=True):
        assert window.end == pytest.approx(seconds, abs=0.07)
        assert window.modalities == ("audio", "video")
        assert len(window.crops) == window.sampled
    (first,), (second,), _ = windows
    assert np.abs(first.crops.astype(int) - second.crops).mean() > 5
    assert np.abs(first.audio - second.audio).mean() > 1e-3


def test_faces_are_of_real_clips_where_there_are_some(data_dir: Path) -> None:
    assert len(videos.faces_of(data_dir)) > 1
    assert videos.yunet_of(data_dir) is not None
    assert videos.yunet_of(None) is None


def test_without_faces_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merfast.demo.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="matplotlib is not installed"):
        videos.write_videos(tmp_path, [SMALL], tmp_path)


@pytest.mark.parametrize(
    ("utilisation", "expected"),
    [
        ({}, "unknown"),
        ({"gpu": 93.0, "decoder": 40.0}, "the GPU"),
        ({"gpu": 81.0, "decoder": 97.0}, "the decode engines"),
        ({"gpu": 60.0, "decoder": 79.0}, "neither GPU nor decode engines"),
    ],
)
def test_what_limits(utilisation: dict[str, float], expected: str) -> None:
    assert end_to_end.limit(utilisation) == expected


def test_utilisation_is_of_the_settled_part_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver(gauges.Gpu):
        """As the driver would say it: idle at first."""

        def __init__(self) -> None:
            self.looks = 0

        def utilisation(self) -> dict[str, float]:
            self.looks += 1
            return {"gpu": 90.0 if self.looks > 3 else 0.0}

    monkeypatch.setattr(gauges, "PERIOD", 0.01)
    monkeypatch.setattr(gauges, "SETTLE", 0.5)
    driver = Driver()

    def work() -> str:
        while driver.looks < 10 or not done():
            time.sleep(0.01)
        return "done"

    began = time.perf_counter()

    def done() -> bool:
        return time.perf_counter() - began > 1.0

    sampled = gauges.Sampled(driver)
    out, seconds = sampled.run(work)
    assert out == "done"
    assert seconds >= 1.0
    assert sampled.means == {"gpu": 90.0}
