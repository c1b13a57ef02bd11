"""`Sightings`: where each face was, at any moment."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from merfast.media.faces import Box
from merfast.media.tracks import FacesAt


class Sightings:
    """Boxes of faces by track, in units of the upright picture's width, as a tracker gave them.

    An hour takes some megabytes.
    """

    def __init__(self) -> None:
        self._times: list[float] = []
        self._boxes: list[dict[int, Box]] = []

    def add(self, seen: FacesAt) -> None:
        """What a tracker says of the next picture."""
        self._times.append(seen.time)
        self._boxes.append({track: face.box for track, face in seen.faces.items()})

    def at(self, time: float) -> dict[int, Box]:
        """Track -> box at a moment: between two pictures it moves evenly; seen in one of them alone, it is there while
        that one is the nearer."""
        after = bisect_right(self._times, time)
        if not after:
            return self._boxes[0] if self._boxes else {}
        if after == len(self._times):
            return self._boxes[-1]
        (t0, a), (t1, b) = ((self._times[i], self._boxes[i]) for i in (after - 1, after))
        part = (time - t0) / (t1 - t0)
        out = dict(a if part < 0.5 else b)
        for track in a.keys() & b.keys():
            out[track] = Box(*(p + part * (q - p) for p, q in zip(a[track], b[track], strict=True)))
        return out

    def hidden(self, areas: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """`[N]`: what part of all faces in all pictures lies within each area.

        Args:
            areas: `[N, 4]` left, top, right, bottom, in units of the picture's width.
        """
        out, whole = np.zeros(len(areas)), 0.0
        for boxes in self._boxes:
            for x, y, side in boxes.values():
                wide = np.minimum(areas[:, 2], x + side / 2) - np.maximum(areas[:, 0], x - side / 2)
                high = np.minimum(areas[:, 3], y + side / 2) - np.maximum(areas[:, 1], y - side / 2)
                out += np.maximum(wide, 0) * np.maximum(high, 0)
                whole += side**2
        return out / whole if whole else out
