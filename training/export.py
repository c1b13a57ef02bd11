"""Write the bundle: `python -m training.export RECIPE --data FOLDER --work FOLDER --out BUNDLE`.

The bundle holds the encoders, the trained fusion, the temperature, the scores and a model card. Its weights are those
that were scored; `training.evaluate` comes before.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import merfast
from merfast import bundle as bundles
from training.card import model_card
from training.data import DataError
from training.project import Project, arguments, project_of, run
from training.train import train_part

HERE = Path(__file__).resolve().parent


def export(project: Project, out: Path, part: str | None = None) -> None:
    """Write the bundle and its model card.

    Args:
        project: trained and scored.
        out: directory of the bundle.
        part: of several folds, the one to take; None is the one whose validation score is best.

    Raises:
        DataError: it is not scored yet, or there is no such part.
    """
    report = project.work / "report"
    try:
        scores: dict[str, Any] = json.loads((report / "scores.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{report / 'scores.json'}: cannot be read ({error}): run training.evaluate first") from error
    parts = {p.name: p for p in project.parts}
    if part is None:
        part = max(parts, key=lambda name: _best(project.work / "fusion" / "main" / name))
    if part not in parts:
        raise DataError(f"part: got {part!r}, expected one of {', '.join(parts)}")
    model, _ = train_part(project, parts[part], project.recipe.train)
    config = replace(
        model.config,
        trained=True,
        fusion=replace(model.config.fusion, temperature=round(float(scores["temperature"]), 4)),
        provenance=_provenance(project, part),
        metrics={"sets": scores["sets"], "temperature": round(float(scores["temperature"]), 4)},
    )
    bundles.save(out, config, model)
    card = model_card(project, config, scores)
    (out / "README.md").write_text(card, encoding="utf-8")
    project.say(f"wrote {out}")


def _provenance(project: Project, part: str) -> dict[str, Any]:
    recipe = project.recipe
    return {
        "recipe": recipe.name,
        "kind": recipe.kind,
        "fingerprint": recipe.fingerprint(recipe),
        "seed": recipe.seed,
        "part": part,
        "commit": _commit(),
        "merfast": merfast.__version__,
        "torch": torch.__version__,
    }


def _commit() -> str:
    """The checkout's commit, with a plus sign where files were changed since."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    return (
        git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "") or "unknown"
    )


def _best(folder: Path) -> float:
    rows = (folder / "log.csv").read_text(encoding="utf-8").splitlines()
    column = rows[0].split(",").index("score")
    return max(float(row.split(",")[column]) for row in rows[1:])


def main(argv: Sequence[str] | None = None) -> int:
    extra: list[tuple[str, dict[str, object]]] = [
        ("--out", {"type": Path, "required": True, "help": "directory of the bundle"}),
        ("--part", {"default": None, "help": "fold to take, as fold0"}),
    ]
    options = arguments(__doc__, extra).parse_args(argv)
    torch.set_num_threads(1)
    return run(lambda: export(project_of(options), options.out, options.part))


if __name__ == "__main__":
    raise SystemExit(main())
