"""Ten minutes of video must not need more memory than one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from media_files import repeat

PREDICT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import merfast
engine = merfast.Engine(detector="haar", threads=2)
(prediction,) = engine.predict([sys.argv[1]])
# Not getrusage: its peak starts with that of the process that started this one.
(peak,) = (int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": prediction.end, "windows": len(prediction.windows), "peak": peak}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
def test_ten_minutes_stay_under_700_mib(face_clip: Path, tmp_path: Path) -> None:
    long = repeat(face_clip, tmp_path / "long.mp4", 233)
    run = subprocess.run([sys.executable, "-c", PREDICT, str(long)], check=True, capture_output=True, text=True)
    result = json.loads(run.stdout)
    assert result["seconds"] == pytest.approx(600, abs=20)
    assert result["windows"] >= 37
    assert result["peak"] < 700, f"peak {result['peak']:.0f} MiB"
