"""Predictions as frames, CSV and Parquet: rows, columns, types, and that all three hold the same."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="needs pandas: pip install 'merfast[tables]'")
from timelines import attention, empty, failed, timeline, window  # noqa: E402

import merfast  # noqa: E402
from merfast import tables  # noqa: E402
from merfast.errors import ConfigError, OverloadedError, UnavailableError  # noqa: E402
from merfast.types import EMOTIONS, Failure, combine  # noqa: E402

RESULTS = [
    window(
        0, 4, attention=attention(0.25, 0.75), others=(window(0, 4, "sad", -2.5, track=7, attention=attention(1.0)),)
    ),
    empty(1, 5, source='odd "name", ü & <b>\n.mp4'),
    window(2, 6, track=None, modalities=("audio",), missing={"video": "no face found"}, warnings=("a", "b")),
    failed(3, 7),
    failed(source="raw\udcff.mp4"),
    Failure("live", OverloadedError("too much")),
]


def test_a_row_for_each_prediction_face_and_failure() -> None:
    frame = merfast.to_frame(iter(RESULTS))
    assert frame["source"].tolist() == [
        *["talk.mp4"] * 2,
        'odd "name", ü & <b>\n.mp4',
        *["talk.mp4"] * 2,
        r"raw\udcff.mp4",
        "live",
    ]
    assert frame["track"].tolist() == [0, 7, *[pd.NA] * 5]
    assert frame["main"].tolist() == [True, False, *[True] * 5]
    assert frame["start"].tolist()[:5] == [0, 0, 1, 2, 3]
    assert frame["end"].tolist()[4] == 7
    assert frame["end"].isna().tolist() == [False] * 5 + [True] * 2
    assert frame["emotion"].fillna("sad").tolist() == ["happy", "sad", "sad", "happy", "sad", "sad", "sad"]
    assert frame["emotion"].isna().tolist() == [False, False, True, False, True, True, True]
    assert frame.loc[0, list(EMOTIONS)].tolist() == RESULTS[0].probabilities.astype(np.float64).tolist()
    assert frame.loc[2:, [*EMOTIONS, "valence"]].isna().all(axis=1).tolist() == [True, False, True, True, True]
    assert frame["modalities"].fillna("-").tolist() == ["audio+video", "audio+video", "", "audio", "-", "-", "-"]
    assert frame["missing"].tolist()[2:4] == ["audio: silent; video: no face found", "video: no face found"]
    assert frame["warnings"].tolist()[3] == "a; b"
    assert frame["error"].isna().tolist() == [True] * 4 + [False] * 3
    assert frame["error"].tolist()[4:] == ["is damaged", "is damaged", "too much"]
    assert frame["attention_audio"].tolist()[:2] == [0.25, 1.0]
    assert frame["attention_video"].tolist()[:2] == [0.75, 0.0]
    assert frame["attention_audio"].isna().tolist()[2:] == [True] * 5


def test_columns_are_those_that_are_documented() -> None:
    said = re.findall(r"^ +- (`.*?`) \((\w+)", merfast.to_frame.__doc__ or "", re.MULTILINE)
    documented = {name: kind for names, kind in said for name in re.findall(r"`(\w+)`", names)}
    for results in (RESULTS, []):
        frame = merfast.to_frame(results)
        assert {name: str(kind) for name, kind in frame.dtypes.items()} == documented
        assert list(frame) == list(documented)  # the order, too
        assert frame["emotion"].cat.categories.tolist() == list(EMOTIONS)


def test_parts_of_long_items_instead_of_the_items() -> None:
    parts = timeline(3, length=16, hop=16, duration=40)
    other = window(0, 40, "sad", track=4)
    results = [combine(parts, windows=tuple(parts), others=(other,)), window(0, 2)]
    assert len(merfast.to_frame(results)) == 3
    frame = merfast.to_frame(results, windows=True)
    assert frame["end"].tolist() == [16, 32, 40, 40, 2]
    assert frame["main"].tolist() == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("wrong", "got"),
    [(RESULTS[0], "Prediction"), (failed(), "Failure"), (5, "int"), (["a"], "str among"), ("a", "str")],
)
def test_what_is_no_list_of_results(wrong: object, got: str) -> None:
    with pytest.raises(ConfigError, match=rf"predictions: got {got}.*, expected"):
        merfast.to_frame(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["pandas", "pyarrow"])
def test_without_the_libraries(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    use = (lambda: merfast.to_frame([])) if missing == "pandas" else (lambda: tables.ParquetWriter(io.BytesIO()))
    with pytest.raises(UnavailableError, match=rf"needs {missing}.*pip install 'merfast\[tables\]'"):
        use()


def parquet_of(results: list) -> io.BytesIO:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'merfast[tables]'")
    out = io.BytesIO()
    writer = tables.ParquetWriter(out)
    for result in results:
        writer.add(result)
    writer.finish()
    out.seek(0)
    return out


@pytest.mark.parametrize("results", [RESULTS, RESULTS[1:2], RESULTS[-1:]])
def test_parquet_is_the_frame(results: list) -> None:
    pd.testing.assert_frame_equal(pd.read_parquet(parquet_of(results)), merfast.to_frame(results))


def test_parquet_has_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a long timeline is not kept until its end."""
    monkeypatch.setattr(tables, "ROW_GROUP", 100)
    windows = timeline(250)
    out = parquet_of(windows)
    from pyarrow import parquet

    found = parquet.ParquetFile(out).metadata
    assert [found.row_group(i).num_rows for i in range(found.num_row_groups)] == [100, 100, 50]
    pd.testing.assert_frame_equal(pd.read_parquet(out), merfast.to_frame(windows))


def test_csv_is_the_frame_to_six_decimals() -> None:
    out = io.StringIO(newline="")
    writer = tables.CsvWriter(out)
    for result in RESULTS:
        writer.add(result)
    out.seek(0)
    types = tables.COLUMNS | {"emotion": pd.CategoricalDtype(EMOTIONS)}
    expected = merfast.to_frame(RESULTS)
    # CSV cannot tell an empty text from none.
    expected["modalities"] = expected["modalities"].replace("", pd.NA)
    got = pd.read_csv(out, dtype=types)
    pd.testing.assert_frame_equal(got, expected.astype(types), rtol=0, atol=1e-6)
    assert "0.036," in out.getvalue()
