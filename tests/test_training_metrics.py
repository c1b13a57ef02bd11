"""Scores, calibration, pictures and tables of training."""

import csv
import json
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merfast.errors import UnavailableError
from merfast.types import EMOTIONS
from training import metrics, plots, tables

LABELS = [0, 0, 0, 1, 1, 2]
PREDICTED = [0, 0, 1, 1, 2, 2]
# By hand: precision 1, 1/2, 1/2; recall 2/3, 1/2, 1.
F1 = [4 / 5, 1 / 2, 2 / 3, 0.0, 0.0, 0.0]
WEIGHTED = (3 * 4 / 5 + 2 * 1 / 2 + 2 / 3) / 6


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def one_hot(labels, sure=1.0):
    """Posteriors with `sure` on each label and the rest spread over the others."""
    rows = np.full((len(labels), 6), (1 - sure) / 5)
    rows[np.arange(len(labels)), labels] = sure
    return rows


def drawn(count=4000, sharpness=1.5, seed=0):
    """Logits, and labels drawn from the probabilities that they mean: calibrated at temperature 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=sharpness, size=(count, 6))
    steps = softmax(logits).cumsum(1)[:, :5]
    return logits, (random.random((count, 1)) > steps).sum(1)


def loss(posterior, labels):
    return -np.log(posterior[np.arange(len(labels)), labels]).mean()


# Emotion and valence


def test_confusion_by_hand():
    counts = metrics.confusion(LABELS, PREDICTED, 3)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert metrics.confusion(LABELS, PREDICTED).shape == (6, 6)


def test_f1_and_accuracy_by_hand():
    assert metrics.class_f1(LABELS, PREDICTED) == pytest.approx(F1)
    assert metrics.class_f1(LABELS, PREDICTED, 3) == pytest.approx(F1[:3])
    assert metrics.weighted_f1(LABELS, PREDICTED) == pytest.approx(WEIGHTED)
    assert metrics.accuracy(LABELS, PREDICTED) == pytest.approx(4 / 6)


def test_a_class_that_is_only_predicted_costs_the_others():
    assert metrics.class_f1([0, 0], [0, 5]).tolist() == [2 / 3, 0, 0, 0, 0, 0]
    assert metrics.weighted_f1([0, 0], [0, 5]) == pytest.approx(2 / 3)


pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)


@given(pairs, st.randoms(use_true_random=False))
def test_f1_is_a_share_and_knows_no_order(items, random):
    labels, predicted = np.array(items).T
    shuffled = items.copy()
    random.shuffle(shuffled)
    value = metrics.weighted_f1(labels, predicted)
    assert 0 <= value <= 1
    assert (value == 1) == bool((labels == predicted).all())
    assert metrics.weighted_f1(*np.array(shuffled).T) == value


@given(pairs, st.permutations(range(6)))
def test_f1_knows_no_names_of_classes(items, names):
    labels, predicted = np.array(items).T
    renamed = np.array(names)
    assert metrics.class_f1(renamed[labels], renamed[predicted])[renamed] == pytest.approx(
        metrics.class_f1(labels, predicted)
    )
    assert metrics.weighted_f1(renamed[labels], renamed[predicted]) == pytest.approx(
        metrics.weighted_f1(labels, predicted)
    )


def test_mse_and_mer_multi_by_hand():
    assert metrics.mse([0, 1, -2], [0, 3, -1]) == pytest.approx(5 / 3)
    assert metrics.mer_multi(0.8, 0.4) == pytest.approx(0.7)


# Calibration


def test_reliability_by_hand():
    posterior = one_hot([0, 1, 2, 3], 0.9)
    posterior[3] = [0.1, 0.1, 0.1, 0.4, 0.2, 0.1]
    result = metrics.reliability(posterior, [0, 1, 5, 3], bins=5)
    assert result.count.tolist() == [0, 1, 0, 0, 3]  # 0.4 is the upper edge of the second bin
    assert result.confidence == pytest.approx([np.nan, 0.4, np.nan, np.nan, 0.9], nan_ok=True)
    assert result.accuracy == pytest.approx([np.nan, 1.0, np.nan, np.nan, 2 / 3], nan_ok=True)
    assert result.ece == pytest.approx((0.6 + 3 * (0.9 - 2 / 3)) / 4)
    assert metrics.expected_calibration_error(posterior, [0, 1, 5, 3], bins=5) == result.ece


def test_certainty_falls_into_the_last_bin():
    result = metrics.reliability(one_hot([0, 1]), [0, 2])
    assert result.count.tolist() == [0] * 14 + [2]
    assert result.ece == 0.5


@pytest.mark.parametrize("right", [4, 6, 9])
def test_ece_of_the_perfectly_calibrated_is_zero(right):
    labels = [0] * right + [1] * (10 - right)
    posterior = one_hot([0] * 10, right / 10)
    assert metrics.expected_calibration_error(posterior, labels) == pytest.approx(0, abs=1e-12)
    assert metrics.expected_calibration_error(one_hot([0] * 10), labels) == pytest.approx(1 - right / 10)


def test_ece_of_labels_drawn_from_the_posterior_is_small():
    logits, labels = drawn()
    assert metrics.expected_calibration_error(softmax(logits), labels) < 0.03
    assert metrics.expected_calibration_error(softmax(3 * logits), labels) > 0.1


@pytest.mark.parametrize("known", [0.5, 1.0, 2.0, 4.0])
def test_fit_recovers_a_known_temperature(known):
    logits, labels = drawn()
    posterior = softmax(known * logits)
    found = metrics.fit_temperature(posterior, labels)
    assert found == pytest.approx(known, rel=0.06)
    best = loss(metrics.apply_temperature(posterior, found), labels)
    for other in (0.2, found * 0.98, found * 1.02, 10.0):
        assert loss(metrics.apply_temperature(posterior, other), labels) > best


def test_fit_of_two_kinds_of_rows_by_hand():
    # All sure by 9:1, right in 3 of 4: log 9 / T = log 3.
    posterior = np.array([[0.9, 0.1]] * 4)
    assert metrics.fit_temperature(posterior, [0, 0, 0, 1]) == pytest.approx(2.0, rel=1e-12)


def test_fit_of_the_over_confident_improves_calibration():
    logits, labels = drawn()
    posterior = softmax(3 * logits)
    found = metrics.fit_temperature(posterior, labels)
    after = metrics.apply_temperature(posterior, found)
    assert found > 1
    assert metrics.expected_calibration_error(after, labels) < metrics.expected_calibration_error(posterior, labels) / 3


@pytest.mark.parametrize(
    ("posterior", "labels", "expected"),
    [
        (one_hot([0, 1, 2], 0.9), [0, 1, 2], 0.2),  # always right: never sure enough
        (one_hot([0, 1, 2], 0.9), [3, 4, 5], 10.0),  # never right: never doubtful enough
        (np.full((3, 6), 1 / 6), [0, 1, 2], 1.0),  # no temperature matters
    ],
)
def test_fit_stays_in_its_range(posterior, labels, expected):
    assert metrics.fit_temperature(posterior, labels) == expected


def test_fit_with_zeros_by_hand():
    # One label of 20001 has the probability 0, which counts as FLOOR: -log FLOOR / T = log 20000.
    posterior = np.zeros((20001, 2), dtype=np.float32)
    posterior[:, 0] = 1
    labels = np.zeros(20001, dtype=np.int64)
    labels[7] = 1
    assert metrics.fit_temperature(posterior, labels) == pytest.approx(-np.log(metrics.FLOOR) / np.log(20000))
    assert metrics.fit_temperature(posterior[:20], labels[:20]) == 10.0


def test_apply_temperature_by_hand():
    got = metrics.apply_temperature([[0.64, 0.32, 0.04], [1.0, 0.0, 0.0]], 2.0)
    roots = np.sqrt([0.64, 0.32, 0.04])
    assert got[0] == pytest.approx(roots / roots.sum())
    assert got[1] == pytest.approx([1, 0, 0])
    assert np.isfinite(got).all()


@given(
    st.lists(st.permutations([0.02, 0.05, 0.08, 0.15, 0.3, 0.4]), min_size=1, max_size=8),
    st.floats(0.2, 10),
)
def test_temperature_keeps_the_order_of_classes(rows, temperature):
    posterior = np.array(rows)
    got = metrics.apply_temperature(posterior, temperature)
    assert (got.argsort(1) == posterior.argsort(1)).all()
    assert got.sum(1) == pytest.approx(np.ones(len(rows)))
    if temperature > 1.001:
        assert (got.max(1) < posterior.max(1)).all()
    if temperature < 0.999:
        assert (got.max(1) > posterior.max(1)).all()


# All of it


def test_score_by_hand():
    labels = [*LABELS, -1]
    posterior = one_hot([*PREDICTED, 5], 0.8)
    got = metrics.score(posterior, labels, [1, 2, 3, 4, 0, 0, 0], [0, np.nan, 3, 2, np.nan, np.nan, 1])
    assert got.n == 6
    assert got.accuracy == pytest.approx(4 / 6)
    assert got.weighted_f1 == pytest.approx(WEIGHTED)
    assert got.class_f1 == pytest.approx(F1)
    assert got.mse == pytest.approx((1 + 0 + 4 + 1) / 4)  # the clip without an emotion has a valence
    assert got.mer_multi == pytest.approx(WEIGHTED - 0.25 * 1.5)
    assert got.ece == pytest.approx(0.8 - 4 / 6)
    plain = json.loads(json.dumps(got.to_dict()))
    assert plain == {
        "n": 6,
        "accuracy": 0.6667,
        "weighted_f1": round(WEIGHTED, 4),
        "class_f1": dict(zip(EMOTIONS, [0.8, 0.5, 0.6667, 0.0, 0.0, 0.0], strict=True)),
        "mse": 1.5,
        "mer_multi": round(WEIGHTED - 0.375, 4),
        "ece": 0.1333,
    }


@pytest.mark.parametrize(
    "valences",
    [(), ([0.0] * 6, None), (None, [0.0] * 6), ([0.0] * 6, [np.nan] * 6), ([np.nan] * 6, [np.nan] * 6)],
)
def test_score_without_valence(valences):
    got = metrics.score(one_hot(PREDICTED), LABELS, *valences)
    assert got.mse is None
    assert got.mer_multi is None
    assert got.to_dict()["mse"] is None


def test_score_takes_valence_predictions_of_no_use():
    assert metrics.score(one_hot([0, 1]), [0, 1], [np.nan, 2.0], [np.nan, 1.0]).mse == 1.0


def test_arguments_stay_as_they_are():
    posterior, labels = one_hot(PREDICTED).astype(np.float32), np.array([*LABELS[:5], -1])
    valence = np.zeros(6)
    copies = posterior.copy(), labels.copy(), valence.copy()
    metrics.score(posterior, labels, valence, valence)
    metrics.apply_temperature(posterior, 2.0)
    for now, before in zip((posterior, labels, valence), copies, strict=True):
        assert np.array_equal(now, before)


GOOD = one_hot([0, 1])
HALF = GOOD / 2
NAN = np.where(GOOD == 1, np.nan, GOOD)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.confusion([], []), r"labels: got shape \[0\], expected \[N\], N at least 1"),
        (lambda: metrics.confusion([0, 1], [0]), r"predicted: got shape \[1\], expected \[2\]"),
        (lambda: metrics.confusion([[0]], [0]), r"labels: got shape \[1, 1\]"),
        (lambda: metrics.confusion([6], [0]), "labels: got 6, expected 0 to 5"),
        (lambda: metrics.accuracy([-1], [0]), "labels: got -1, expected 0 to 5"),
        (lambda: metrics.weighted_f1([0], [3], 3), "predicted: got 3, expected 0 to 2"),
        (lambda: metrics.class_f1([0.0], [0]), "labels: got float64, expected whole numbers"),
        (lambda: metrics.confusion([0], [0], 0), "classes: got 0, expected 1 or more"),
        (lambda: metrics.mse([], []), r"labels: got shape \[0\]"),
        (lambda: metrics.mse([0, 1], [0]), r"predicted: got shape \[1\], expected \[2\]"),
        (lambda: metrics.mse([0, np.nan], [0, 0]), "labels: got 1 NaN or infinite of 2, expected finite"),
        (lambda: metrics.reliability(GOOD, [0, 1], 0), "bins: got 0, expected 1 or more"),
        (lambda: metrics.reliability(GOOD, [0, 6]), "labels: got 6, expected 0 to 5"),
        (lambda: metrics.reliability(GOOD[0], [0]), r"posterior: got float64 \[6\], expected numbers \[N, C\]"),
        (lambda: metrics.fit_temperature(GOOD[:0], []), r"posterior: got float64 \[0, 6\], expected numbers \[N, C\]"),
        (lambda: metrics.fit_temperature(NAN, [0, 1]), "posterior: got NaN or infinity in 2 of 2 rows"),
        (lambda: metrics.fit_temperature(HALF, [0, 1]), "posterior: got row 0 with the sum 0.5, expected rows"),
        (lambda: metrics.apply_temperature(GOOD, 0.0), "temperature: got 0.0, expected a positive number"),
        (lambda: metrics.apply_temperature(GOOD, np.inf), "temperature: got inf"),
        (lambda: metrics.apply_temperature([[1.5, -0.5]], 1.0), "posterior: got -0.5, expected probabilities from 0"),
        (lambda: metrics.score(GOOD[:, :5], [0, 1]), r"posterior: got shape \[2, 5\], expected \[N, 6\]"),
        (lambda: metrics.score(GOOD, [0]), r"labels: got shape \[1\], expected \[2\]"),
        (lambda: metrics.score(GOOD, [0, -2]), "labels: got -2, expected -1 to 5"),
        (lambda: metrics.score(GOOD, [-1, -1]), "labels: got 2 times -1, no label, expected at least one"),
        (lambda: metrics.score(GOOD, [0, 1], [0.0], [0.0, 0.0]), r"valence: got shape \[1\], expected \[2\]"),
        (lambda: metrics.score(GOOD, [0, 1], None, [0.0]), r"valence_labels: got shape \[1\], expected \[2\]"),
        (lambda: metrics.score(GOOD, [0, 1], [0, np.nan], [0, 0]), "valence: got 1 NaN or infinite where there is a"),
        (lambda: metrics.score(GOOD, [0, 1], [0, 0], [0, np.inf]), "valence_labels: got 1 infinite, expected"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Pictures


def picture(file):
    """The pixels of a PNG file, that must be large enough to read and must not be blank."""
    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = cv2.imread(str(file))
    assert pixels is not None
    assert 200 < pixels.shape[0] < 2000
    assert 500 < pixels.shape[1] < 3000
    assert pixels.std() > 5
    return pixels


def check_pictures(draw, tmp_path, *cases):
    """Each case gives its own picture, and the same bytes a second time."""
    files = [tmp_path / f"{i}.png" for i in range(len(cases))]
    for file, case in zip(files, cases, strict=True):
        draw(case, file)
        picture(file)
        draw(case, tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == file.read_bytes()
    assert len({f.read_bytes() for f in files}) == len(files)


def test_confusion_picture(tmp_path):
    counts = metrics.confusion(LABELS, PREDICTED)  # three of the rows are empty
    more = counts.copy()
    more[3, 3] = 12345
    check_pictures(lambda c, file: plots.plot_confusion(c, file, "a title with $5 and $6"), tmp_path, counts, more)


def test_confusion_picture_is_dark_where_shares_are_large(tmp_path):
    file = tmp_path / "right.png"
    plots.plot_confusion(np.diag([1, 2, 4, 8, 16, 32]), file, "")
    pixels = picture(file)
    dark = (pixels < 130).all(2)[:, : int(pixels.shape[1] * 0.83)]  # full shares, left of the colour bar
    rows, columns = np.nonzero(dark)
    assert len(rows) > 0.1 * dark.size
    assert np.corrcoef(rows, columns)[0, 1] > 0.7


def test_reliability_picture(tmp_path):
    logits, labels = drawn(200)
    after = metrics.reliability(softmax(logits), labels)
    sure = metrics.reliability(softmax(3 * logits), labels)
    exact = metrics.reliability(one_hot([0, 1]), [0, 1])
    cases = (sure, after), (after, sure), (exact, exact)
    check_pictures(lambda c, file: plots.plot_reliability(*c, file), tmp_path, *cases)


def write_log(file, rows):
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(rows)
    return file


def test_curves_picture(tmp_path):
    head = ["epoch", "train_loss", "val_loss", "val_f1", "lr"]
    falling = write_log(tmp_path / "a.csv", [head, *([i, 2 - i / 9, 2 - i / 12, i / 10, 1e-4] for i in range(9))])
    gaps = write_log(tmp_path / "b.csv", [head, [0, 2, 2, "", 1e-4], [1, 1, "", 0.5, 1e-4]])
    single = write_log(tmp_path / "c.csv", [head[:2], [3, 1.5]])
    check_pictures(plots.plot_curves, tmp_path, falling, gaps, single)


def test_curves_stand_in_panels_by_their_words(tmp_path, monkeypatch):
    head = ["epoch", "loss/train", "loss/val", "train_loss_valence", "val_weighted_f1", "val.mse", "lr", "test"]
    log = write_log(tmp_path / "log.csv", [head, range(8)])
    kept = []
    monkeypatch.setattr(plots, "_save", lambda figure, file: kept.append(figure))
    plots.plot_curves(log, tmp_path / "log.png")
    panels = {axes.get_title(): [line.get_label() for line in axes.lines] for axes in kept[0].axes}
    assert panels == {"loss": head[1:4], "f1": head[4:5], "mse": head[5:6], "lr": head[6:7], "test": head[7:]}


def test_crops_picture(tmp_path):
    random = np.random.default_rng(0)
    grey = list(random.integers(0, 255, (3, 48, 48), dtype=np.uint8))
    colour = list(random.integers(0, 255, (5, 64, 64, 3), dtype=np.uint8))
    cases = {"training": grey}, {"training": grey, "inference": colour}, {"inference": [*grey, *colour]}
    check_pictures(lambda c, file: plots.plot_crops(c, file, "faces"), tmp_path, *cases)


def test_crops_keep_their_colours(tmp_path):
    file = tmp_path / "red.png"
    red = np.zeros((50, 50, 3), dtype=np.uint8)
    red[:, :, 0] = 200
    plots.plot_crops({"red": [red], "dark grey": [np.full((50, 50), 60, dtype=np.uint8)]}, file, "")
    pixels = picture(file).reshape(-1, 3)  # BGR
    side = 1.25 * 150
    for colour in ([0, 0, 200], [60, 60, 60]):
        assert (pixels == colour).all(1).sum() == pytest.approx(side * side, rel=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: plots.plot_confusion(np.eye(5, dtype=int), f, ""), r"counts: got shape \[5, 5\], expected \[6, 6\]"),
        (lambda f: plots.plot_confusion(-np.eye(6, dtype=int), f, ""), "counts: got int64 from -1, expected whole"),
        (lambda f: plots.plot_confusion(np.eye(6), f, ""), "counts: got float64 from 0.0, expected whole numbers"),
        (
            lambda f: plots.plot_reliability(
                metrics.reliability(GOOD, [0, 1]), metrics.reliability(GOOD, [0, 1], 10), f
            ),
            "after: got 10 bins, expected 15, as before",
        ),
        (lambda f: plots.plot_crops({}, f, ""), "groups: got no rows"),
        (lambda f: plots.plot_crops({"a": []}, f, ""), "a: got no pictures"),
        (lambda f: plots.plot_crops({"a": [np.zeros((4, 4))]}, f, ""), r"a: got float64 \[4, 4\], expected uint8"),
        (lambda f: plots.plot_crops({"a": [np.zeros((4, 5), np.uint8)]}, f, ""), r"a: got uint8 \[4, 5\], expected"),
        (lambda f: plots.plot_crops({"a": [np.zeros((4, 4, 4), np.uint8)]}, f, ""), r"a: got uint8 \[4, 4, 4\]"),
    ],
)
def test_bad_input_of_pictures(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "bad.png")
    assert not (tmp_path / "bad.png").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"log.csv: got the columns \[\], expected 'epoch' and at least one other"),
        ([["step", "loss"], [1, 2]], r"got the columns \['step', 'loss'\]"),
        ([["epoch", "f1", "f1"], [1, 2, 3]], "expected each once"),
        ([["epoch"], [1]], r"got the columns \['epoch'\]"),
        ([["epoch", "loss"]], "got no rows"),
        ([["epoch", "loss"], [0, 1], [1, "high"]], "loss, row 2: got 'high', expected a number"),
        ([["epoch", "loss"], ["", 1]], "epoch: got rows without a number"),
        ([["epoch", "loss"], [0, 1, 2]], "row 1: got 3 cells, expected 2"),
        ([["epoch", "loss"], [0, 1], [1]], "row 2: got 1 cells, expected 2"),
    ],
)
def test_bad_logs(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_curves(write_log(tmp_path / "log.csv", rows), tmp_path / "log.png")


def test_pictures_without_matplotlib(tmp_path, monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnavailableError, match="pictures need matplotlib, which is not installed"):
        plots.plot_confusion(np.eye(6, dtype=int), tmp_path / "a.png", "")


# Tables

ROWS = [
    {"model": "audio|video", "f1": 0.71264, "n": 411, "mse": None},
    {"model": "text\nonly", "f1": np.float32(1), "n": 8},
]


def test_markdown():
    got = tables.markdown([*ROWS, {"mse": 0.5}], ["model", "f1", "f1:.1%", "n", "mse"])
    assert got.replace("\N{EN DASH}", "@").split("\n") == [
        "| model        |    f1 |     f1 |   n |   mse |",
        "| ------------ | ----: | -----: | --: | ----: |",
        "| audio\\|video | 0.713 |  71.3% | 411 |     @ |",
        "| text only    | 1.000 | 100.0% |   8 |     @ |",
        "| @            |     @ |      @ |   @ | 0.500 |",
    ]


def test_markdown_of_no_rows():
    assert tables.markdown([], ["a", "model"]) == "| a   | model |\n| --- | ----- |"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "columns: got none"),
        (["f2"], r"columns: got 'f2', expected one of \['f1', 'model', 'mse', 'n'\]"),
        (["f1:.1x"], "f1: got the format '.1x', expected one for 0.71264"),
    ],
)
def test_bad_columns(columns, message):
    with pytest.raises(ValueError, match=message):
        tables.markdown(ROWS, columns)


def test_show(capsys):
    tables.show([*ROWS, {"model": "[bold]x"}], ["model", "f1:.2f", "mse"], "Scores [here]")
    shown = capsys.readouterr().out
    for text in ("Scores [here]", "audio|video", "0.71", "\N{EN DASH}", "[bold]x"):
        assert text in shown
    assert "0.713" not in shown
