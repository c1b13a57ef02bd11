"""A clip to try merfast with, made on the spot: a public-domain portrait in slow motion, and synthetic babble.

The portrait is the US Navy's photograph of Grace Hopper (public domain) that ships inside matplotlib. The sound is
generated here and says nothing: vowels one after the other, in the manner of a formant synthesiser (Klatt, 1980).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from merfast.errors import ConfigError, UnavailableError
from merfast.types import ByteArray, FloatArray

WIDTH, HEIGHT, FPS = 480, 360, 25
RATE = 24_000
"""Sampling rate of the sound, in Hz."""

MADE_OF = "the US Navy's portrait of Grace Hopper (public domain, from matplotlib), slowly moved, and synthetic babble"

_FACE = 256.0, 232.0  # where the camera looks in the portrait, pixels
_BLOCK = 1024  # samples in a frame of AAC
# First three formants of five vowels in Hz (Peterson and Barney, 1952), and their bandwidths.
_VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])
_BANDWIDTHS = np.array([80.0, 100.0, 140.0])
_SYLLABLE = 0.21  # seconds


def make_clip(path: str | Path, seconds: float = 4.0, *, width: int = WIDTH) -> Path:
    """Write the demo clip: MP4, 480 x 360 at 25 frames a second, H.264 (MPEG-4 where FFmpeg has no x264) and AAC.

    Args:
        path: the file to write; one that is there is replaced.
        seconds: its duration, from 0.2 to 600.
        width: of the picture in pixels, even; more of it shows more of what is beside the face.

    Returns:
        The path.

    Raises:
        ConfigError: `seconds` or `width` out of range, or the file cannot be written.
        UnavailableError: matplotlib, which brings the portrait, is not installed.
    """
    if not 0.2 <= seconds <= 600.0:
        raise ConfigError(f"seconds: got {seconds}, expected 0.2 to 600")
    if not 64 <= width <= 4096 or width % 2:
        raise ConfigError(f"width: got {width}, expected an even number from 64 to 4096")
    image = portrait()
    try:
        _write(Path(path), _pictures(image, seconds, width), babble(seconds), width)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from error
    return Path(path)


def babble(seconds: float, rate: int = RATE) -> FloatArray:
    """Speech-like sound, `[N]` in [-0.5, 0.5]: harmonics of a gliding pitch, weighted by moving formants.

    The same arguments give the same samples.
    """
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * rate)) / rate
    syllables = int(seconds / _SYLLABLE) + 2
    centres = (np.arange(syllables) + 0.5) * _SYLLABLE
    vowels = _VOWELS[rng.integers(len(_VOWELS), size=syllables)]
    formants = np.stack([np.interp(time, centres, vowels[:, i]) for i in range(3)])  # [3, N]

    pitch = 185 + 18 * np.sin(2 * np.pi * 0.45 * time) + 3 * np.sin(2 * np.pi * 5.1 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = np.zeros_like(time)
    for harmonic in range(1, int(4000 / pitch.max()) + 1):
        response = _resonances(harmonic * pitch, formants)
        voice += response / harmonic * np.sin(harmonic * phase)  # the glottal source falls with frequency

    loudness = rng.uniform(0.6, 1.0, syllables)
    loudness[5::7] = 0.0  # a breath after every few syllables
    position = time / _SYLLABLE
    envelope = loudness[position.astype(int)] * np.sin(np.pi * (position % 1.0)) ** 0.7
    onset = np.clip(1 - (position % 1.0) / 0.25, 0, None) * (loudness[position.astype(int)] > 0)
    voice *= envelope / max(1e-9, float(np.abs(voice).max()))
    sound = voice + 0.03 * onset * rng.standard_normal(len(time))  # consonants, roughly
    return np.asarray(0.5 * sound / np.abs(sound).max(), dtype=np.float32)


def _resonances(frequency: npt.NDArray[np.float64], formants: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gain `[N]` of second-order resonators in a row at `frequency`, 1 at 0 Hz."""
    gain = np.ones_like(frequency)
    for centre, width in zip(formants, _BANDWIDTHS, strict=True):
        squared = centre**2
        gain *= squared / np.hypot(squared - frequency**2, width * frequency)
    return gain


def portrait() -> ByteArray:
    """The portrait, `[600, 512, 3]` RGB.

    Raises:
        UnavailableError: matplotlib, which brings it, is not installed.
    """
    spec = importlib.util.find_spec("matplotlib")
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        file = Path(place, "mpl-data", "sample_data", "grace_hopper.jpg")
        image = cv2.imread(str(file)) if file.is_file() else None
        if image is not None:
            return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    why = "this matplotlib comes without its sample pictures" if places else "matplotlib is not installed"
    raise UnavailableError(f"the demo's portrait comes with matplotlib, but {why}: pip install 'merfast[demo]'")


def _pictures(image: ByteArray, seconds: float, width: int) -> Iterator[ByteArray]:
    """The frames `[HEIGHT, width, 3]`: the portrait through a camera that drifts and zooms."""
    for i in range(max(1, round(seconds * FPS))):
        time = i / FPS
        zoom = WIDTH / (430 + 30 * math.cos(2 * math.pi * 0.11 * time))
        x = _FACE[0] + 9 * math.sin(2 * math.pi * 0.21 * time)
        y = _FACE[1] + 7 * math.sin(2 * math.pi * 0.34 * time)
        motion = np.array([[zoom, 0.0, width / 2 - zoom * x], [0.0, zoom, HEIGHT / 2 - zoom * y]])
        yield np.asarray(cv2.warpAffine(image, motion, (width, HEIGHT), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _write(path: Path, pictures: Iterator[ByteArray], sound: FloatArray, width: int) -> None:
    h264 = "libx264" in av.codecs_available
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264" if h264 else "mpeg4", rate=FPS)
        video.width, video.height, video.pix_fmt = width, HEIGHT, "yuv420p"
        if h264:
            video.options = {"crf": "23", "preset": "veryfast"}
        else:
            video.bit_rate = 1_500_000
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        written = 0
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(video.encode(frame))
            until = min(len(sound), (i + 1) * RATE // FPS)
            while until - written >= _BLOCK:
                container.mux(audio.encode(_samples(sound, written)))
                written += _BLOCK
        while written < len(sound):
            container.mux(audio.encode(_samples(sound, written)))
            written += _BLOCK
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def _samples(sound: FloatArray, start: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(sound[None, start : start + _BLOCK], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
    return frame
