"""Finding faces in a picture: YuNet where its file is at hand, else the Haar cascade that OpenCV ships.

Both give the same box: a square around the face, framed as the Haar cascade frames it, which is also how FER2013 is
cropped. YuNet's tighter rectangle is brought to it by a factor measured on real clips (315 faces found by both: side
1.09 sqrt(w h), standard deviation 0.07, centres within 2 % of the height).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from merfast.errors import UnavailableError
from merfast.types import ByteArray

DETECT_SIZE = 480
"""Pixels of the longer side of the picture in which faces are looked for."""

_YUNET_SCALE = 1.09
_YUNET_SCORE = 0.7
_YUNET_OVERLAP = 0.3
YUNET_MOST = 100
"""Boxes, the surest, that are thinned out; the others are left out."""

YUNET_SMALLEST = 10
"""Pixels of the shorter side of a picture that YuNet takes: its strides leave nothing of a smaller one."""

_HAAR_STEP = 1.2
_HAAR_NEIGHBOURS = 2
_HAAR_SMALLEST = 32


class Box(NamedTuple):
    """A square, in the picture's own units: centre and side."""

    x: float
    y: float
    side: float

    def scaled(self, by: float) -> Box:
        return Box(self.x * by, self.y * by, self.side * by)

    def overlap(self, other: Box) -> float:
        """Intersection over union, in [0, 1]."""
        half = (self.side + other.side) / 2
        limit = min(self.side, other.side)
        wide = min(limit, max(0.0, half - abs(self.x - other.x)))
        high = min(limit, max(0.0, half - abs(self.y - other.y)))
        shared = wide * high
        return shared / (self.side**2 + other.side**2 - shared)


class Detector(Protocol):
    """Finds faces in one stream's pictures; not to be shared between threads."""

    def detect(self, image: ByteArray) -> list[Box]:
        """Boxes of the faces in `[h, w, 3]` uint8 RGB, in its pixels, the surest first."""


class YuNet:
    """The YuNet detector (Wu et al., 2023) through OpenCV.

    Args:
        model: the file `face_detection_yunet_2023mar.onnx`.

    Raises:
        UnavailableError: OpenCV cannot load the file.
    """

    def __init__(self, model: Path) -> None:
        try:
            self._net = cv2.FaceDetectorYN.create(str(model), "", (320, 320), _YUNET_SCORE, _YUNET_OVERLAP, YUNET_MOST)
        except cv2.error as error:
            raise UnavailableError(f"detector 'yunet': OpenCV cannot load {model} ({error.err})") from error

    def detect(self, image: ByteArray) -> list[Box]:
        height, width = image.shape[:2]
        if min(height, width) < YUNET_SMALLEST:
            return []
        self._net.setInputSize((width, height))
        found: Any = self._net.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]  # None where nothing is found
        return [] if found is None else _boxes_of(np.asarray(found))


def yunet_boxes(rows: npt.NDArray[np.float32]) -> list[Box]:
    """Boxes out of all that YuNet may have seen, the surest first, thinned out as `cv2.FaceDetectorYN` does it.

    Args:
        rows: `[K, 5]`: left, top, width, height in pixels, and score; `YUNET_MOST` of them at most.
    """
    rows = rows[(rows[:, 4] >= _YUNET_SCORE) & np.isfinite(rows).all(1)]
    if len(rows) > 1:
        whole = rows[:, :4].clip(-1e9, 1e9).astype(np.int32)
        scores = rows[:, 4].tolist()
        kept = cv2.dnn.NMSBoxes(whole.tolist(), scores, _YUNET_SCORE, _YUNET_OVERLAP, 1.0, YUNET_MOST)
        rows = rows[np.asarray(kept, dtype=np.int64).reshape(-1)]
    return _boxes_of(rows)


def _boxes_of(rows: npt.NDArray[np.float32]) -> list[Box]:
    """Boxes of rows that begin with left, top, width, height and end with a score, the surest first."""
    rows = rows.astype(np.float64)
    rows = rows[np.isfinite(rows).all(1)]
    rows = rows[rows[:, -1].argsort()[::-1]]
    boxes = rows[:, :4].tolist()
    return [Box(x + w / 2, y + h / 2, _YUNET_SCALE * (w * h) ** 0.5) for x, y, w, h in boxes if w > 0 and h > 0]


class Haar:
    """The frontal face cascade (Viola and Jones, 2001; Lienhart's `alt2` training) inside OpenCV 4."""

    def __init__(self) -> None:
        folder = Path(cv2.__file__).parent / "data"
        self._cascade = cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_alt2.xml"))

    def detect(self, image: ByteArray) -> list[Box]:
        if min(image.shape[:2]) < _HAAR_SMALLEST:
            return []
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        found, counts = self._cascade.detectMultiScale2(
            grey, _HAAR_STEP, _HAAR_NEIGHBOURS, minSize=(_HAAR_SMALLEST, _HAAR_SMALLEST)
        )
        order = np.argsort(np.asarray(counts).reshape(-1))[::-1]
        boxes = [Box(x + w / 2, y + h / 2, float(w)) for x, y, w, h in np.asarray(found).reshape(-1, 4)[order]]
        return [b for i, b in enumerate(boxes) if all(b.overlap(kept) < _YUNET_OVERLAP for kept in boxes[:i])]


class DetectorEach:
    """A detector that many threads may share: each has one of its own, made when it first looks.

    Args:
        kind, model: as for `make_detector`.
    """

    def __init__(self, kind: str, model: Path | None) -> None:
        self._kind, self._model = kind, model
        self._own = threading.local()

    def detect(self, image: ByteArray) -> list[Box]:
        detector: Detector | None = getattr(self._own, "detector", None)
        if detector is None:
            detector = self._own.detector = make_detector(self._kind, self._model)
        return detector.detect(image)


def make_detector(kind: str, model: Path | None) -> Detector:
    """A fresh detector for one stream: "yunet" (with its file) or "haar".

    Raises:
        UnavailableError: YuNet's file cannot be loaded.
        ValueError: there is no such detector.
    """
    if kind == "yunet" and model is not None:
        return YuNet(model)
    if kind == "haar":
        return Haar()
    raise ValueError(f"detector: got {kind!r} with model {model}, expected 'haar', or 'yunet' with its file")


def whole_pixels(box: Box) -> tuple[int, int, int]:
    """(left, top, side) of a box in whole pixels, at least one."""
    side = max(1, round(box.side))
    return round(box.x - side / 2), round(box.y - side / 2), side


def crop_square(image: ByteArray, box: Box, size: int) -> ByteArray:
    """Cut a square out of `[H, W, 3]` and scale it to `[size, size, 3]`; beyond the border the edge is repeated.

    Scaling down averages over areas, scaling up is bilinear.
    """
    height, width = image.shape[:2]
    left, top, side = whole_pixels(box)
    # A box may lie partly outside; one that misses the picture is moved to its border.
    left = min(max(left, 1 - side), width - 1)
    top = min(max(top, 1 - side), height - 1)
    inside = image[max(0, top) : top + side, max(0, left) : left + side]
    before_y, before_x = max(0, -top), max(0, -left)
    after_y, after_x = max(0, top + side - height), max(0, left + side - width)
    if before_y or before_x or after_y or after_x:
        edges = (before_y, after_y, before_x, after_x)
        inside = np.asarray(cv2.copyMakeBorder(inside, *edges, cv2.BORDER_REPLICATE), dtype=np.uint8)
    return resize(inside, size)


def resize(image: ByteArray, size: int) -> ByteArray:
    """Scale `[H, W, 3]` to `[size, size, 3]`: down by averaging over areas, up bilinearly."""
    method = cv2.INTER_AREA if min(image.shape[:2]) > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size, size), interpolation=method), dtype=np.uint8)
