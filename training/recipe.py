"""A recipe: one TOML file that says what is trained, on what, and how. Unknown keys are refused."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merfast.config import BundleConfig, FusionConfig, Preprocessing, StreamConfig
from training.composites import Motion
from training.corrupt import Corruption
from training.data import DataError
from training.face import FaceRecipe
from training.loop import Schedule
from training.prosody import ProsodyRecipe
from training.strict import build
from training.voice import VoiceRecipe

KINDS = ("composites", "manifest", "mer2023")


@dataclass(frozen=True)
class CompositesRecipe:
    """The mini recipe's data; see `training.composites`.

    Attributes:
        train, val: number of composites; the test set uses every picture of PublicTest once.
        faces_held_out: fraction of FER2013's Training that the face encoder does not see: pictures of "val".
        val_speakers, test_speakers: the rest are "train".
        folds: of the voice branch's cross-validation; 0 leaves it out.
        motion: what happens to the pictures.
    """

    train: int = 12000
    val: int = 2000
    faces_held_out: float = 0.1
    val_speakers: tuple[str, ...] = ()
    test_speakers: tuple[str, ...] = ()
    folds: int = 5
    motion: Motion = field(default_factory=Motion)


@dataclass(frozen=True)
class FeaturesRecipe:
    """How features are made.

    Attributes:
        detector: of faces, as `Engine` takes it.
        train_corruption: of the second, corrupted rendering of every training clip.
        noisy: whether to make it.
    """

    detector: str = "auto"
    noisy: bool = True
    train_corruption: Corruption = field(
        default_factory=lambda: Corruption(snr=(0.0, 20.0), blurs=(0.0, 1.0, 2.0, 4.0), audio=0.8, video=0.8)
    )


@dataclass(frozen=True)
class TrainRecipe:
    """How the fusion is trained.

    Attributes:
        schedule: see `training.loop`.
        batch: clips.
        drop_audio, drop_video: how often a modality is dropped from a clip, never both.
        noisy: how often the corrupted rendering of a clip is used.
        feature_noise: standard deviation of noise on the feature vectors, or on each layer's, relative to theirs.
        frame_dropout: fraction of a clip's feature vectors that are left out.
        smoothing: of the labels.
        balance: power of the classes' inverse frequency in the loss; 0 is none, 1 is full.
        decoding: "joint" (valence given the posterior) or "parallel".
        weighting: "uncertainty" (learned) or "fixed" weights of the two tasks.
        gathering: "afg" or "mean".
    """

    schedule: Schedule = field(default_factory=Schedule)
    batch: int = 64
    drop_audio: float = 0.15
    drop_video: float = 0.15
    noisy: float = 0.5
    feature_noise: float = 0.1
    frame_dropout: float = 0.2
    smoothing: float = 0.05
    balance: float = 0.5
    decoding: str = "joint"
    weighting: str = "uncertainty"
    gathering: str = "afg"

    def __post_init__(self) -> None:
        choices = {
            "decoding": ("joint", "parallel"),
            "weighting": ("uncertainty", "fixed"),
            "gathering": ("afg", "mean"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise DataError(f"train {name}: got {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        for name in ("drop_audio", "drop_video", "noisy", "frame_dropout", "smoothing", "balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"train {name}: got {getattr(self, name)}, expected 0 to 1")
        if self.batch < 1 or self.drop_audio + self.drop_video > 1:
            raise DataError("train: expected a batch above 0, and drop_audio + drop_video up to 1")


@dataclass(frozen=True)
class ClipsRecipe:
    """Labelled clips.

    Attributes:
        labels: CSV or npz file, relative to the data folder; a manifest's, or MER 2023's own.
        folds: folds of the training split, by speaker where known; 0 uses the split "val".
        seed: of the folds, and of splits that the manifest does not give.
    """

    labels: str = ""
    folds: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """Where a stream's encoder comes from.

    Attributes:
        source: for an encoder of kind "transformers", a local folder, a hub id, or a bundle that has a stream of that
            name; for the others such a bundle, the packaged one if empty.
        revision: of the hub id.
        download: whether it may be fetched from the hub.
    """

    source: str = ""
    revision: str | None = None
    download: bool = False


@dataclass(frozen=True)
class Recipe:
    """Everything that a bundle is made from, besides the data themselves."""

    name: str
    kind: str
    seed: int = 0
    licence: str = ""
    streams: tuple[StreamConfig, ...] = ()
    encoders: dict[str, Source] = field(default_factory=dict)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    composites: CompositesRecipe = field(default_factory=CompositesRecipe)
    clips: ClipsRecipe = field(default_factory=ClipsRecipe)
    face: FaceRecipe = field(default_factory=FaceRecipe)
    voice: VoiceRecipe = field(default_factory=VoiceRecipe)
    prosody: ProsodyRecipe = field(default_factory=ProsodyRecipe)
    features: FeaturesRecipe = field(default_factory=FeaturesRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"recipe kind: got {self.kind!r}, expected one of {', '.join(KINDS)}")
        self.bundle_config()

    def bundle_config(self, **changes: Any) -> BundleConfig:
        """The config of the bundle, untrained unless `changes` say otherwise."""
        config = BundleConfig(
            self.name, False, self.streams, preprocessing=self.preprocessing, fusion=self.fusion, licence=self.licence
        )
        return replace(config, **changes)

    def fingerprint(self, *parts: object) -> str:
        """Hash of the parts of a recipe, or whatever else, that a run depends on."""
        return hashlib.sha256(repr((self.seed, *parts)).encode()).hexdigest()[:16]


def read_recipe(file: Path) -> Recipe:
    """Read a recipe.

    Raises:
        DataError: not TOML, an unknown or missing key, or a value of another type.
        BundleError: streams or widths that no bundle can have.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not TOML: {error}") from error
    return build(Recipe, table, str(file))
