"""Data in the mini recipe's layout: two corpora of three speakers, and 280 pictures of noise."""

import csv
from pathlib import Path

import numpy as np
from media_files import write_wav

COLUMNS = ("file", "corpus", "speaker", "emotion", "intensity", "seconds")
LABELS = ("neutral", "angry", "happy", "sad", "fear", "surprised")


def write(root: Path) -> Path:
    """Write it; returns the folder."""
    (root / "speech").mkdir()
    rng, rows = np.random.default_rng(0), []
    for corpus in ("one", "two"):
        for speaker in range(3):
            for label in (*LABELS, "disgust"):
                name = f"{corpus}_{speaker}_{label}.wav"
                write_wav(root / "speech" / name, rng.normal(0, 0.1, 8000).astype(np.float32))
                rows.append((name, corpus, f"{corpus}_{speaker}", label, "strong" if speaker else "", "0.5"))
    write_manifest(root / "speech", rows)
    names = np.array(["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"])
    images = rng.integers(0, 256, (280, 48, 48)).astype(np.uint8)
    split = np.array(["Training"] * 210 + ["PublicTest"] * 70)
    np.savez(root / "fer2013.npz", images=images, labels=(np.arange(280) % 7).astype(np.int8), names=names, split=split)
    return root


def write_manifest(folder: Path, rows: list[tuple[str, ...]], columns: tuple[str, ...] = COLUMNS) -> None:
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([columns, *rows])
