"""What `shots` and the report's tests look at: synthetic results of any length, and a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from merfast.attention import Attention, StreamAttention
from merfast.types import EMOTIONS, Prediction

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

WATCH = """
window.longTasks = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.longTasks.push(entry.duration);
}).observe({ type: "longtask", buffered: true });
"""
"""Run before a page: tasks over 50 ms, milliseconds each, end up in `longTasks`."""

DRAWN = "() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(() => r(performance.now()))))"
"""Milliseconds from the navigation until what was asked for before is on the screen."""


def find_browser() -> str | None:
    """Chromium or Chrome of this machine."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@contextmanager
def browser(executable: str) -> Iterator[Browser]:
    """A headless Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        try:
            yield running
        finally:
            running.close()


def synthetic(
    seconds: float, *, window: float = 4.0, hop: float = 1.0, faces: int = 1, explain: bool = False, seed: int = 0
) -> list[Prediction]:
    """Results of a medium that was never there: moods that drift over a minute, faces that come and go, and silence."""
    rng = np.random.default_rng(seed)
    count = max(1, int((seconds - window) / hop) + 1)
    courses = [_course(rng, count, hop) for _ in range(faces)]
    silent = _stretches(rng, count, hop, 0.08)
    away = [_stretches(rng, count, hop, 0.15 if k == 0 else 0.55) for k in range(faces)]
    out = []
    for i in range(count):
        start = i * hop
        end = seconds if i == count - 1 else start + window
        visible = [k for k in range(faces) if not away[k][i]]
        found = []
        for track in visible or [None]:
            probabilities, valence = courses[track or 0]
            modalities = (("audio",) if not silent[i] else ()) + (("video",) if track is not None else ())
            missing = ({"audio": "silent"} if silent[i] else {}) | ({"video": "no face found"} if track is None else {})
            known = bool(modalities)
            p = probabilities[i] if known else np.full(6, np.nan, dtype=np.float32)
            attention = _attention(rng, start, end, modalities) if explain and known else None
            found.append(
                Prediction(
                    "synthetic.mp4",
                    start,
                    end,
                    EMOTIONS[int(p.argmax())] if known else None,
                    p.copy(),
                    float(valence[i]) if known else float("nan"),
                    modalities,
                    0.0 if track is None else float(rng.choice([1.0, 1.0, 0.9, 0.6])),
                    missing,
                    track,
                    attention=attention,
                )
            )
        main, *others = found
        out.append(main if not others else _with_others(main, others))
    return out


def _with_others(main: Prediction, others: Sequence[Prediction]) -> Prediction:
    from dataclasses import replace

    return replace(main, others=tuple(others))


def _course(rng: np.random.Generator, count: int, hop: float) -> tuple[np.ndarray, np.ndarray]:
    """`[count, 6]` probabilities and `[count]` valence that drift over a minute."""
    steps = rng.normal(size=(count + 400, 6))
    length = max(2, round(40 / hop))
    kernel = np.hanning(2 * length + 1)
    drift = np.stack([np.convolve(s, kernel / np.sqrt((kernel**2).sum()), "same") for s in steps.T], axis=1)[200:-200]
    scores = 2.2 * drift + np.array([0.6, 0, 0.3, 0, 0, -0.6]) + 0.25 * rng.normal(size=(count, 6))
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    valence = probabilities @ np.array([0.2, -3.4, 4.1, -3.0, -2.2, 1.6]) + 0.2 * rng.normal(size=count)
    return probabilities, np.clip(valence, -5, 5)


def _stretches(rng: np.random.Generator, count: int, hop: float, part: float) -> np.ndarray:
    """`[count]` bool, true in stretches of half a minute or so that are `part` of the time."""
    noise = np.convolve(rng.normal(size=count + 400), np.hanning(2 * max(2, round(15 / hop)) + 1), "same")[200:-200]
    return noise > np.quantile(noise, 1 - part) if count > 20 else np.zeros(count, dtype=bool)


def _attention(rng: np.random.Generator, start: float, end: float, modalities: Sequence[str]) -> Attention:
    """As of the packaged bundle: moments of voice and face, and statistics of the whole window."""
    shares = rng.dirichlet([3, 1, 3])
    steps = {"voice": ("audio", 0.08, shares[0]), "prosody": ("audio", end - start, shares[1])}
    steps["face"] = ("video", 0.2, shares[2])
    there = {name: step for name, step in steps.items() if step[0] in modalities}
    total = sum(share for _, _, share in there.values())
    streams = {}
    for name, (modality, step, share) in there.items():
        marks = np.arange(start, end - 1e-9, step)
        spans = np.stack([marks, np.minimum(marks + step, end)], axis=1)
        # The same moments weigh much in all windows that hold them.
        weights = np.exp(1.2 * np.sin(marks * 1.7) + 0.8 * np.sin(marks * 0.31 + len(name)))
        weights = (weights / weights.sum()).astype(np.float32)
        streams[name] = StreamAttention(modality, float(share / total), spans, weights)
    return Attention(streams)


def clip_of(data: Path | None, name: str, made: Path, seconds: float) -> Path:
    """A real clip, or the demo's where there is none."""
    from merfast.demo import make_clip

    file = None if data is None else data / "clips" / name
    return file if file is not None and file.is_file() else make_clip(made, seconds)
