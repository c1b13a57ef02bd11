"""What a bundle says of real clips: `python -m training.clips BUNDLE FOLDER --out FOLDER [--faces fer2013.npz]`.

Prints a table: each clip's prediction, and how much it changes between neighbouring windows of 4 s, one every second.
Writes the table, and pictures of the crops beside training faces, to the folder; with --card, the table goes into the
bundle's model card too. The clips have no labels: the table shows that predictions differ and are steady, no more.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import merfast
from merfast.errors import MerfastError
from merfast.media.windows import WindowSpec
from merfast.pipeline import ItemReader
from merfast.types import EMOTIONS, Prediction
from training.corpora import read_faces
from training.plots import plot_crops
from training.tables import markdown

WINDOW, HOP = 4.0, 1.0
TITLE = "Real clips"
SUFFIXES = frozenset({".mp4", ".mov", ".mpg", ".mkv", ".webm", ".avi"})


def clip_rows(engine: merfast.Engine, files: Sequence[Path]) -> list[dict[str, Any]]:
    """One row for each clip: its prediction, and the mean change of its timeline.

    The change between neighbouring windows is half the sum of the probabilities' absolute differences (total
    variation), in [0, 1].
    """
    rows: list[dict[str, Any]] = []
    for file in files:
        (whole,) = engine.predict([file], on_error="return")
        if not isinstance(whole, Prediction):
            rows.append({"clip": file.name, "emotion": str(whole.error)})
            continue
        windows = [p for p in engine.timeline(file, window=WINDOW, hop=HOP) if p.emotion is not None]
        steps = [changed(a, b) for a, b in pairwise(windows)]
        rows.append(
            {
                "clip": file.name,
                "emotion": whole.emotion,
                "p": float(whole.probabilities.max()),
                "valence": whole.valence,
                "from": "+".join(whole.modalities),
                "face": whole.face_coverage,
                "windows": len(windows),
                "mean change": float(np.mean(steps)) if steps else None,
            }
        )
    return rows


def changed(a: Prediction, b: Prediction) -> float:
    """Total variation between two predictions' probabilities, in [0, 1]."""
    return 0.5 * float(np.abs(a.probabilities - b.probabilities).sum())


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """One sentence on how the clips differ and how steady their timelines are."""
    known = [r for r in rows if r.get("p") is not None]
    steps = [(r["mean change"], r["windows"] - 1) for r in known if r["mean change"] is not None]
    emotions = sorted({str(r["emotion"]) for r in known}, key=EMOTIONS.index)
    spread = float(np.std([r["valence"] for r in known])) if known else float("nan")
    mean = sum(s * n for s, n in steps) / sum(n for _, n in steps) if steps else float("nan")
    return (
        f"{len(known)} clips, {len(emotions)} emotions among them ({', '.join(emotions)}), deviation of the valence "
        f"{spread:.2f}; mean change between neighbouring windows {mean:.3f} of 1."
    )


def crops_of(engine: merfast.Engine, file: Path, most: int = 8) -> list[np.ndarray]:
    """Some of a clip's face crops `[S, S, 3]` uint8, evenly spaced, as the engine cuts them."""
    preprocessing = engine.bundle.config.preprocessing
    spec = WindowSpec(preprocessing.max_window, preprocessing.max_window)
    reader = ItemReader(file, file.name, engine.plan, engine.bundle.config, spec, every_face=False, threads=1)
    crops = [np.asarray(torch.as_tensor(crop).cpu()) for group in reader for crop in group[0].crops]
    return [crops[i] for i in np.linspace(0, len(crops) - 1, min(most, len(crops))).astype(int)] if crops else []


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of clips")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the pictures")
    parser.add_argument("--faces", type=Path, default=None, help="fer2013.npz, to show training faces beside the crops")
    parser.add_argument("--yunet", type=Path, default=None, help="YuNet's ONNX file")
    parser.add_argument("--card", action="store_true", help="put the table into the bundle's model card")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    files = sorted(f for f in options.folder.glob("*") if f.suffix.lower() in SUFFIXES)
    if not files:
        print(f"error: {options.folder}: got no clips, expected some of {', '.join(sorted(SUFFIXES))}", file=sys.stderr)
        return 1
    try:
        with warnings.catch_warnings(action="ignore", category=merfast.UntrainedWarning):
            engine = merfast.Engine(options.bundle, detector_model=options.yunet)
        rows = clip_rows(engine, files)
        readable = [f for f, row in zip(files, rows, strict=True) if "p" in row]
        groups = {f.name: crops for f in readable if (crops := crops_of(engine, f))}
        if options.faces is not None:
            faces = read_faces(options.faces, 0.0, 0)["train"]
            shown = {f"FER2013: {e}": list(faces.images[faces.labels == i][:8]) for i, e in enumerate(EMOTIONS)}
            groups = shown | groups
    except MerfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    columns = ("clip", "emotion", "p:.2f", "valence:+.2f", "from", "face:.0%", "windows", "mean change")
    text = markdown(rows, columns) + "\n\n" + summary(rows) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "clips.md").write_text(text, encoding="utf-8")
    plot_crops(groups, options.out / "crops.png", "Training faces, and the engine's crops of real clips")
    if options.card:
        put_section(options.bundle / "README.md", TITLE, text)
    print(text)
    return 0


def put_section(card: Path, title: str, text: str) -> None:
    """Put a section at the end of a Markdown file, instead of one of that title."""
    before = card.read_text(encoding="utf-8").partition(f"\n## {title}\n")[0].rstrip()
    card.write_text(f"{before}\n\n## {title}\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
