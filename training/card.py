"""The model card that goes with a bundle: what it is, what it was trained on, its scores, its limits."""

from __future__ import annotations

from typing import Any

from merfast.config import BundleConfig
from training.project import Project
from training.recipe import Recipe

CARD = """# {name}

{summary}

- streams: {streams}
- structures: {structures}; average weights {mix}; temperature {temperature:.3f}
- licence: {licence}
- made by: `{command}` (seed {seed}; commit {commit}, a plus sign for changes that were not committed yet)

## Data

{data}

## Scores

{scores}

## Limits

{limits}
"""

COMPOSITES_SUMMARY = """A small audio-visual model of six emotions and valence, trained on **composites**: a still
picture of a face, brought to life, with an utterance of the same emotion by somebody else. It is for demonstration and
research: it shows the whole path at work, and is no substitute for a model trained on recordings of people."""

COMPOSITES_DATA = """| set | used for | terms |
| --- | --- | --- |
| FER2013 (arXiv 1307.0414), {faces} pictures without disgust | faces | research use |
| RAVDESS (doi 10.1371/journal.pone.0196391) | voices, English | CC BY-NC-SA 4.0 |
| EmoDB (doi 10.21437/Interspeech.2005-446) | voices, German | free for research |
| nEMO (arXiv 2404.06292) | voices, Polish | CC BY-NC-SA 4.0 |

None of these data are in the bundle, nor in merfast. "worried" is trained on fear: no public set here has "worried".
Calm counts as neutral.

**Splits.** No speaker and no picture is in two of them, and the encoders saw those of training only.

- test: {test_speakers}; FER2013's PublicTest
- validation: {val_speakers}; {held_out:.0%} of FER2013's Training
- training: the other {n_train} speakers and pictures

{counts}

**Valence.** No set here has valence labels. The targets are **pseudo-labels**: the mean pleasure of the emotion's word
(Russell & Mehrabian 1977, doi 10.1016/0092-6566(77)90037-X) times 5, times the acted intensity (strong 1.0, unknown
0.8, normal 0.6). Every MSE and every MER-MULTI below is a score on these pseudo-labels, and says little about the
valence of real people."""

COMPOSITES_LIMITS = """\
- Voice and face agree by construction, and come from different people. On recordings, where they may disagree, these
  scores do not hold.
- The voices are acted, in three languages; the faces are search results of 2013, with all their bias and noisy labels.
- The scores on "noise" are those of the MER-NOISE corruption as we understand it (`training/corrupt.py`).
- Not for decisions about people."""


def model_card(project: Project, config: BundleConfig, scores: dict[str, Any]) -> str:
    """The card's Markdown.

    Args:
        project: recipe and data.
        config: of the bundle.
        scores: what `training.evaluate` wrote.
    """
    from training.evaluate import tables

    recipe = project.recipe
    composites = recipe.kind == "composites"
    fusion = config.fusion
    return CARD.format(
        name=config.name,
        summary=COMPOSITES_SUMMARY if composites else f"A fused audio-visual model, trained with `{recipe.name}`.",
        streams=", ".join(f"{s.name} ({s.modality}: {s.encoder}, {s.dim})" for s in config.streams),
        structures=", ".join(fusion.structures),
        mix=", ".join(f"{w:.2f}" for w in fusion.mix),
        temperature=fusion.temperature,
        licence=recipe.licence or "not stated",
        command="python -m training RECIPE --data DATA --work WORK --out BUNDLE",
        seed=recipe.seed,
        commit=config.provenance.get("commit", "unknown"),
        data=_composites_data(project) if composites else _clips_data(project),
        scores=tables(scores).strip(),
        limits=COMPOSITES_LIMITS if composites else "Those of the clips it was trained on.",
    )


def _composites_data(project: Project) -> str:
    recipe: Recipe = project.recipe
    faces, speech = project.faces, project.speech
    counts = ", ".join(
        f"{name}: {len(faces[name])} pictures and {len(speech[name])} utterances" for name in ("train", "val", "test")
    )
    return COMPOSITES_DATA.format(
        faces=sum(len(f) for f in faces.values()),
        test_speakers=", ".join(recipe.composites.test_speakers),
        val_speakers=", ".join(recipe.composites.val_speakers),
        held_out=recipe.composites.faces_held_out,
        n_train=len({u.speaker for u in speech["train"]}),
        counts=f"{counts[0].upper()}{counts[1:]}; composites: {recipe.composites.train} to train on.",
    )


def _clips_data(project: Project) -> str:
    rows = [f"- {split}: {len(samples)} clips" for split, samples in project.noise_splits.items()]
    return "\n".join(rows)
