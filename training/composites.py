"""Composites: one still picture of a face, brought to life, with one utterance of the same emotion by somebody else.

No public set here has talking faces with emotion labels that may be used for the packaged bundle, so its fusion is
trained and scored on these. They are NOT recordings of people: voice and face agree by construction, and nothing in
their timing does. Every report says so.

One composite shows one face (several would make the face side trivially strong): moved, lit, blurred, covered and
dropped over time, its expression rising from and falling back to the average neutral face, so that some frames tell
less than others and gathering has something to choose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from merfast.clip import Clip
from merfast.types import EMOTIONS, SAMPLE_RATE, ByteArray, FloatArray
from training.corpora import Faces, Utterance
from training.data import DataError, Sample
from training.media import file_hash, read_audio

FRAME_RATE = 5.0
"""Pictures a second."""

VERSION = "1"
"""Changes when the same composite is drawn otherwise."""


@dataclass(frozen=True)
class Motion:
    """How much happens to the picture; every composite draws its own amounts up to these.

    Attributes:
        shift: of the picture's side, slowly wandering.
        turn: degrees.
        zoom: relative.
        light: relative change of contrast, and of gamma; `shade` in grey levels from one side to the other.
        blur: standard deviation in pixels of 48.
        covered: fraction of composites with a patch over part of the face for a while.
        dropped: fraction of composites that lose a stretch of frames.
        weakest: strength of the expression in the weakest frame, 1 being the picture as it is.
    """

    shift: float = 0.04
    turn: float = 5.0
    zoom: float = 0.05
    light: float = 0.15
    shade: float = 15.0
    blur: float = 0.6
    covered: float = 0.25
    dropped: float = 0.3
    weakest: float = 0.3


@dataclass(frozen=True, eq=False)
class Composite:
    """One composite, rendered when it is opened; the same seed gives the same pictures.

    Attributes:
        image: `[48, 48]` uint8, the face.
        image_id: hash of its pixels.
        neutral: `[48, 48]` uint8, the average neutral face of the training pictures.
        utterance: the voice.
        motion, seed: what is done to the face.
    """

    image: ByteArray
    image_id: str
    neutral: ByteArray
    utterance: Utterance
    motion: Motion
    seed: int

    def key(self) -> str:
        neutral = hashlib.sha256(self.neutral.tobytes()).hexdigest()[:16]
        what = (VERSION, self.image_id, neutral, file_hash(self.utterance.file), self.motion, self.seed)
        return hashlib.sha256(repr(what).encode()).hexdigest()

    @cached_property
    def name(self) -> str:
        return f"{self.image_id}+{self.utterance.file.stem}+{self.seed}"

    def open(self) -> Clip:
        """The composite as decoded media whose frames are face crops."""
        audio = read_audio(self.utterance.file)
        frames, times = self.pictures(len(audio) / SAMPLE_RATE)
        grey = np.repeat(frames[..., None], 3, -1)
        return Clip.from_arrays(grey, times=times, audio=audio, sample_rate=SAMPLE_RATE, faces="given", name=self.name)

    def pictures(self, seconds: float) -> tuple[ByteArray, npt.NDArray[np.float64]]:
        """Grey frames `[T, 48, 48]` uint8 and their times in seconds; at least one."""
        rng, motion = np.random.default_rng(self.seed), self.motion
        count = max(1, int(np.ceil(seconds * FRAME_RATE)))
        times = np.arange(count) / FRAME_RATE
        side = self.image.shape[0]
        strength = motion.weakest + (1 - motion.weakest) * _rise_and_fall(rng, count)
        moves = [_wander(rng, count) * rng.uniform(0, 1) * m for m in (motion.shift * side,) * 2]
        turns, zooms = _wander(rng, count) * rng.uniform(0, motion.turn), _wander(rng, count) * motion.zoom
        gains = 1 + rng.uniform(-1, 1) * motion.light + 0.3 * motion.light * _wander(rng, count)
        gamma = float(np.exp(rng.uniform(-1, 1) * motion.light))
        angle, shade = rng.uniform(0, 2 * np.pi), rng.uniform(0, motion.shade)
        ramp = np.linspace(-1, 1, side)
        light = shade * (np.cos(angle) * ramp[None] + np.sin(angle) * ramp[:, None])
        sigma = rng.uniform(0, motion.blur)
        patch = _patch(rng, side, count) if rng.random() < motion.covered else None
        face, neutral = self.image.astype(np.float32), self._matched_neutral()
        flip = rng.random() < 0.5
        out = np.empty((count, side, side), np.uint8)
        for t in range(count):
            picture = neutral + strength[t] * (face - neutral)
            picture = picture[:, ::-1] if flip else picture
            matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), float(turns[t]), 1 + float(zooms[t]))
            matrix[:, 2] += moves[0][t], moves[1][t]
            picture = cv2.warpAffine(
                np.ascontiguousarray(picture), matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101
            )
            if patch is not None and patch.first <= t < patch.last:
                picture[patch.rows, patch.columns] = patch.grey
            if sigma > 0.3:
                picture = cv2.GaussianBlur(picture, (0, 0), sigma)
            picture = 255 * (picture.clip(0, 255) / 255) ** gamma
            picture = (picture - 128) * gains[t] + 128 + light
            out[t] = picture.clip(0, 255)
        if count > 3 and rng.random() < motion.dropped:
            lost = int(rng.integers(1, count // 2 + 1))
            first = int(rng.integers(0, count - lost + 1))
            kept = np.r_[0:first, first + lost : count]
            out, times = out[kept], times[kept]
        return out, times

    def _matched_neutral(self) -> FloatArray:
        """The average neutral face with the picture's own brightness and contrast."""
        neutral, face = self.neutral.astype(np.float32), self.image.astype(np.float32)
        scaled = (neutral - neutral.mean()) / max(float(neutral.std()), 1.0)
        matched: FloatArray = (scaled * face.std() + face.mean()).astype(np.float32)
        return matched


@dataclass(frozen=True)
class _Patch:
    rows: slice
    columns: slice
    grey: float
    first: int
    last: int


def _patch(rng: np.random.Generator, side: int, count: int) -> _Patch:
    height, width = (int(rng.integers(side // 6, side // 3)) for _ in range(2))
    top, left = int(rng.integers(0, side - height)), int(rng.integers(0, side - width))
    length = int(rng.integers(1, count + 1))
    first = int(rng.integers(0, count - length + 1))
    return _Patch(
        slice(top, top + height), slice(left, left + width), float(rng.uniform(0, 255)), first, first + length
    )


def _wander(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """A slow curve `[count]` in [-1, 1]: two sines of random phase, periods of 2 to 8 seconds."""
    t = np.arange(count) / FRAME_RATE
    periods, phases = rng.uniform(2, 8, 2), rng.uniform(0, 2 * np.pi, 2)
    curve: npt.NDArray[np.float64] = 0.5 * np.sin(2 * np.pi * t[:, None] / periods + phases).sum(1)
    return curve


def _rise_and_fall(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Strength of the expression `[count]` in [0, 1]: full somewhere, for some of the time."""
    t = (np.arange(count) + 0.5) / count
    peak, width = rng.uniform(0, 1), rng.uniform(0.2, 0.8)
    strength = np.exp(-0.5 * ((t - peak) / width) ** 2)
    out: npt.NDArray[np.float64] = strength / strength.max()
    return out


def average_neutral(faces: Faces) -> ByteArray:
    """Mean of the neutral pictures `[48, 48]` uint8, each brought to the same brightness and contrast."""
    images = faces.images[faces.labels == EMOTIONS.index("neutral")].astype(np.float32)
    if not len(images):
        raise DataError("faces: got no neutral picture, expected some to average")
    images = images - images.mean((1, 2), keepdims=True)
    mean = (images / images.std((1, 2), keepdims=True).clip(1)).mean(0)
    grey: ByteArray = (128 + 50 * mean / mean.std()).clip(0, 255).astype(np.uint8)
    return grey


def make_composites(
    faces: Faces, utterances: Sequence[Utterance], neutral: ByteArray, split: str, count: int, motion: Motion, seed: int
) -> list[Sample]:
    """`count` composites of one split, in random order.

    Pictures are used up before any is used again, so that their classes' shares are kept; the voice is drawn from all
    corpora that have the emotion alike, and within a corpus from all its utterances alike.

    Raises:
        DataError: an emotion has pictures, but no utterance.
    """
    rng = np.random.default_rng([seed, *split.encode()])
    by_class: dict[int, dict[str, list[Utterance]]] = {}
    for utterance in utterances:
        by_class.setdefault(utterance.emotion, {}).setdefault(utterance.corpus, []).append(utterance)
    rounds = [rng.permutation(len(faces)) for _ in range(-(-count // max(len(faces), 1)))]
    out = []
    for number, row in enumerate(np.concatenate(rounds)[:count]):
        emotion = int(faces.labels[row])
        if emotion not in by_class:
            raise DataError(f"split {split!r}: got pictures but no utterance of {EMOTIONS[emotion]}")
        corpora = by_class[emotion]
        corpus = sorted(corpora)[int(rng.integers(len(corpora)))]
        voice = corpora[corpus][int(rng.integers(len(corpora[corpus])))]
        media = Composite(faces.images[row], faces.ids[row], neutral, voice, motion, int(rng.integers(2**31)))
        name = f"{split}-{number:05d}"
        out.append(
            Sample(name, media, emotion, voice.valence, voice.speaker, split, groups=(f"picture {media.image_id}",))
        )
    return out
