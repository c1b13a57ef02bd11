"""How good predictions are: F1, MSE, the MER score and calibration, in numpy; no function changes its arguments."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from merfast.types import EMOTIONS, IntArray

DoubleArray = npt.NDArray[np.float64]

COLDEST, HOTTEST = 0.2, 10.0
"""Range of the temperatures that `fit_temperature` gives."""

FLOOR = float(np.finfo(np.float32).tiny)
"""Probabilities below count as this much (1.2e-38), so that their logarithm is finite."""

_SUM_SLACK = 1e-3  # what float16 posteriors may miss a sum of 1 by


def confusion(labels: npt.ArrayLike, predicted: npt.ArrayLike, classes: int = len(EMOTIONS)) -> IntArray:
    """`[C, C]` counts: the row is the true class, the column the predicted one.

    Args:
        labels, predicted: `[N]` whole numbers from 0 to `classes` - 1; at least one.

    Raises:
        ValueError: a shape, type or value is not as described.
    """
    true = _classes("labels", labels, classes)
    got = _classes("predicted", predicted, classes, len(true))
    return np.bincount(true * classes + got, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def class_f1(labels: npt.ArrayLike, predicted: npt.ArrayLike, classes: int = len(EMOTIONS)) -> DoubleArray:
    """`[C]` F1 of each class, in [0, 1]; 0 for a class that is neither among the labels nor predicted.

    Raises:
        ValueError: as `confusion`.
    """
    return _class_f1(confusion(labels, predicted, classes))


def weighted_f1(labels: npt.ArrayLike, predicted: npt.ArrayLike, classes: int = len(EMOTIONS)) -> float:
    """Mean of the classes' F1 weighted by how often each is the label, in [0, 1] (the emotion score of MER 2023).

    Raises:
        ValueError: as `confusion`.
    """
    return _weighted_f1(confusion(labels, predicted, classes))


def accuracy(labels: npt.ArrayLike, predicted: npt.ArrayLike, classes: int = len(EMOTIONS)) -> float:
    """Share of the predictions that are right, in [0, 1].

    Raises:
        ValueError: as `confusion`.
    """
    return _accuracy(confusion(labels, predicted, classes))


def mse(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Mean squared error of `[N]` finite numbers, at least one.

    Raises:
        ValueError: the shapes differ, or a number is not finite.
    """
    true = _numbers("labels", labels)
    got = _numbers("predicted", predicted, len(true))
    return float(np.mean((true - got) ** 2))


def mer_multi(f1: float, mse: float) -> float:
    """Score of the track MER-MULTI: weighted F1 less a quarter of the valence's MSE (Lian et al., MER 2023)."""
    return f1 - 0.25 * mse


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often predictions of each confidence are right; bin b holds confidences in (b / B, (b + 1) / B].

    Attributes:
        count: `[B]` number of predictions.
        confidence: `[B]` their mean confidence, in [0, 1]; NaN in an empty bin.
        accuracy: `[B]` share of them that is right, in [0, 1]; NaN in an empty bin.
    """

    count: IntArray
    confidence: DoubleArray
    accuracy: DoubleArray

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]: mean gap between confidence and accuracy, weighted by count."""
        full = self.count > 0
        gaps = np.abs(self.confidence[full] - self.accuracy[full])
        return float(np.dot(self.count[full], gaps) / self.count.sum())


def reliability(posterior: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> Reliability:
    """Sort predictions into bins of equal width by the probability of their most probable class.

    Args:
        posterior: `[N, C]` probabilities whose rows sum to 1; at least one row.
        labels: `[N]` whole numbers from 0 to C - 1.
        bins: number of bins, from 1 on.

    Raises:
        ValueError: a shape, type or value is not as described.
    """
    rows, true = _pair(posterior, labels)
    if bins < 1:
        raise ValueError(f"bins: got {bins}, expected 1 or more")
    top = rows.max(1)
    where = np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(where, minlength=bins).astype(np.int64)
    divisor = np.where(count > 0, count, np.nan)
    confidence = np.bincount(where, weights=top, minlength=bins) / divisor
    right = np.bincount(where, weights=rows.argmax(1) == true, minlength=bins) / divisor
    return Reliability(count, confidence, right)


def expected_calibration_error(posterior: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> float:
    """Top-label calibration error in [0, 1], with bins of equal width (Guo et al., ICML 2017, equation 3).

    Raises:
        ValueError: as `reliability`.
    """
    return reliability(posterior, labels, bins).ece


def apply_temperature(posterior: npt.ArrayLike, temperature: float) -> DoubleArray:
    """`[N, C]` softmax(log p / T): softer for T > 1, sharper for T < 1, with the same most probable class.

    Args:
        posterior: `[N, C]` probabilities whose rows sum to 1; below `FLOOR` they count as `FLOOR`.
        temperature: positive.

    Raises:
        ValueError: a shape or value is not as described.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: got {temperature}, expected a positive number")
    return _softmax(_logits(_posterior(posterior)) / temperature)


def fit_temperature(posterior: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The temperature in [0.2, 10] at which `apply_temperature` gives the labels the least negative log-likelihood.

    The loss is convex in 1 / T, so that bisecting its slope finds the one minimum (Guo et al., ICML 2017, section
    4.2, with the logarithm of the averaged posterior in the place of the logits). 1 where no temperature matters.

    Args:
        posterior: `[N, C]` probabilities whose rows sum to 1; at least one row.
        labels: `[N]` whole numbers from 0 to C - 1.

    Raises:
        ValueError: a shape, type or value is not as described.
    """
    rows, true = _pair(posterior, labels)
    logits = _logits(rows)
    wanted = logits[np.arange(len(true)), true]

    def slope(temperature: float) -> float:
        """Derivative of the loss by 1 / T; it falls as T rises."""
        return float(np.mean((_softmax(logits / temperature) * logits).sum(1) - wanted))

    low, high = COLDEST, HOTTEST
    if not logits.any():
        return 1.0
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return math.sqrt(low * high)


@dataclass(frozen=True)
class Scores:
    """What `score` gives.

    Attributes:
        n: number of clips with an emotion label.
        accuracy, weighted_f1: in [0, 1].
        class_f1: F1 in [0, 1] of each of `EMOTIONS`.
        mse: of the valence, over the clips with a valence label; None if there are none.
        mer_multi: `weighted_f1` - 0.25 `mse`; None if `mse` is.
        ece: expected calibration error over 15 bins, in [0, 1].
    """

    n: int
    accuracy: float
    weighted_f1: float
    class_f1: tuple[float, ...]
    mse: float | None
    mer_multi: float | None
    ece: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, rounded to 4 digits; `class_f1` is a mapping by emotion."""
        out = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return out | {"class_f1": {e: round(f1, 4) for e, f1 in zip(EMOTIONS, self.class_f1, strict=True)}}


def score(
    posterior: npt.ArrayLike,
    labels: npt.ArrayLike,
    valence: npt.ArrayLike | None = None,
    valence_labels: npt.ArrayLike | None = None,
) -> Scores:
    """All scores of a model on a data set.

    Args:
        posterior: `[N, 6]` probabilities in the order of `EMOTIONS`, whose rows sum to 1.
        labels: `[N]` indices into `EMOTIONS`, -1 where there is no label; at least one label.
        valence: `[N]` predicted valence, finite wherever there is a label; None if it is not predicted.
        valence_labels: `[N]` true valence, NaN where there is no label; None if there are none.

    Raises:
        ValueError: a shape, type or value is not as described.
    """
    rows = _posterior(posterior)
    if rows.shape[1] != len(EMOTIONS):
        raise ValueError(f"posterior: got shape {list(rows.shape)}, expected [N, {len(EMOTIONS)}]")
    true = _classes("labels", labels, len(EMOTIONS), len(rows), lowest=-1)
    known = true >= 0
    if not known.any():
        raise ValueError(f"labels: got {len(true)} times -1, no label, expected at least one label")
    counts = confusion(true[known], rows[known].argmax(1))
    f1, error = _weighted_f1(counts), _valence_mse(valence, valence_labels, len(rows))
    return Scores(
        n=int(known.sum()),
        accuracy=_accuracy(counts),
        weighted_f1=f1,
        class_f1=tuple(_class_f1(counts).tolist()),
        mse=error,
        mer_multi=None if error is None else mer_multi(f1, error),
        ece=expected_calibration_error(rows[known], true[known]),
    )


def _valence_mse(valence: npt.ArrayLike | None, labels: npt.ArrayLike | None, count: int) -> float | None:
    got = None if valence is None else _vector("valence", valence, count)
    true = None if labels is None else _vector("valence_labels", labels, count)
    if got is None or true is None:
        return None
    if np.isinf(true).any():
        raise ValueError(
            f"valence_labels: got {int(np.isinf(true).sum())} infinite, expected numbers, NaN for no label"
        )
    known = ~np.isnan(true)
    if not known.any():
        return None
    bad = int((~np.isfinite(got[known])).sum())
    if bad:
        raise ValueError(f"valence: got {bad} NaN or infinite where there is a label, expected finite numbers")
    return mse(true[known], got[known])


def _class_f1(counts: IntArray) -> DoubleArray:
    either = counts.sum(0) + counts.sum(1)
    return 2.0 * counts.diagonal() / np.where(either > 0, either, 1)


def _weighted_f1(counts: IntArray) -> float:
    return float(np.dot(counts.sum(1), _class_f1(counts)) / counts.sum())


def _accuracy(counts: IntArray) -> float:
    return float(counts.trace() / counts.sum())


def _logits(rows: DoubleArray) -> DoubleArray:
    """Logarithms, of which the largest in each row is 0."""
    logs = np.log(np.maximum(rows, FLOOR))
    return np.asarray(logs - logs.max(1, keepdims=True))


def _softmax(logits: DoubleArray) -> DoubleArray:
    """Over rows whose largest value is 0."""
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(1, keepdims=True))


def _pair(posterior: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[DoubleArray, IntArray]:
    rows = _posterior(posterior)
    return rows, _classes("labels", labels, rows.shape[1], len(rows))


def _posterior(values: npt.ArrayLike) -> DoubleArray:
    rows = np.asarray(values)
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind not in "fiu":
        raise ValueError(f"posterior: got {rows.dtype} {list(rows.shape)}, expected numbers [N, C], N and C at least 1")
    rows = rows.astype(np.float64)
    bad = int((~np.isfinite(rows)).any(1).sum())
    if bad:
        raise ValueError(f"posterior: got NaN or infinity in {bad} of {len(rows)} rows, expected finite probabilities")
    if rows.min() < 0:
        raise ValueError(f"posterior: got {rows.min():.6g}, expected probabilities from 0 on")
    sums = rows.sum(1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > _SUM_SLACK:
        raise ValueError(f"posterior: got row {worst} with the sum {sums[worst]:.6g}, expected rows that sum to 1")
    return rows


def _classes(name: str, values: npt.ArrayLike, classes: int, count: int | None = None, lowest: int = 0) -> IntArray:
    if classes < 1:
        raise ValueError(f"classes: got {classes}, expected 1 or more")
    array = np.asarray(values)
    _check_vector(name, array, count)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: got {array.dtype}, expected whole numbers")
    outside = array[(array < lowest) | (array >= classes)]
    if len(outside):
        raise ValueError(f"{name}: got {outside[0]}, expected {lowest} to {classes - 1}")
    return array.astype(np.int64)


def _vector(name: str, values: npt.ArrayLike, count: int | None = None) -> DoubleArray:
    array = np.asarray(values)
    _check_vector(name, array, count)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: got {array.dtype}, expected numbers")
    return array.astype(np.float64)


def _numbers(name: str, values: npt.ArrayLike, count: int | None = None) -> DoubleArray:
    array = _vector(name, values, count)
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(f"{name}: got {bad} NaN or infinite of {len(array)}, expected finite numbers")
    return array


def _check_vector(name: str, array: npt.NDArray[Any], count: int | None) -> None:
    if array.ndim != 1 or not len(array) or (count is not None and len(array) != count):
        length = "N], N at least 1" if count is None else f"{count}]"
        raise ValueError(f"{name}: got shape {list(array.shape)}, expected [{length}")
