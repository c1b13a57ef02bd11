"""What `benchmarks.pipeline` feeds both sides: a bundle of encoders of real sizes with random weights, and clips.

python -m benchmarks.pipeline_inputs --work FOLDER --sizes large,base     # makes bundles beforehand
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merfast import bundle as bundles
from merfast.config import BundleConfig
from merfast.models import FusedModel
from merfast.models.model import inputs_of
from merfast.types import SAMPLE_RATE, Batch, ByteArray, FloatArray, Window

CROPS = 16
"""Face crops of a clip, whatever its length."""

SIDE = 224
VOICE, FACE = "voice", "face"

# A random network of transformers' own spread, 0.02, gives nearly the same for all clips: nothing could be compared.
_SPREAD = {"initializer_range": 0.04}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_TINY = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128}
_STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": ({**_TINY, **_SPREAD, "conv_dim": (32,) * 7}, {**_TINY, **_SPREAD, "patch_size": 32}),
    "base": (_SPREAD, _SPREAD),
    "large": ({**_LARGE, **_STABLE, **_SPREAD}, {**_LARGE, **_SPREAD}),
}
"""Name -> in what the configs of HuBERT and ViT differ from transformers' defaults, those of the base models."""

_EXTRACTOR = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": SAMPLE_RATE, "do_normalize": True}
_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


@dataclass(frozen=True)
class Media:
    """A clip's samples `[N]` at 16 kHz and its crops `[16, 224, 224, 3]`."""

    audio: FloatArray
    crops: ByteArray

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE


def make_checkpoints(folder: Path, size: str, seed: int = 0) -> tuple[Path, Path]:
    """HuBERT and ViT with random weights, in transformers' format; returns their folders."""
    import transformers

    kinds = (
        (transformers.HubertConfig, transformers.HubertModel, {}, _EXTRACTOR),
        (transformers.ViTConfig, transformers.ViTModel, {"add_pooling_layer": False}, _PROCESSOR),
    )
    out = []
    for name, settings, (config, model, arguments, processor) in zip((VOICE, FACE), SIZES[size], kinds, strict=True):
        torch.manual_seed(seed)
        place = folder / name
        model(config(**settings), **arguments).save_pretrained(place)
        (place / "preprocessor_config.json").write_text(json.dumps(processor))
        out.append(place)
    return out[0], out[1]


def make_bundle(
    out: Path,
    size: str,
    seed: int = 0,
    *,
    frame_rate: float = 20.0,
    windows: Callable[[BundleConfig], Sequence[Window]] | None = None,
    device: str = "cpu",
) -> None:
    """A bundle of both models, layers gathered by attention, whose predictions tell clips apart.

    A new bundle treats all layers alike, and its predictions hardly differ; see `tell_apart`.

    Args:
        out: a new folder; the checkpoints lie beside it while it is made.
        size: of the models, see `SIZES`.
        seed: of the weights.
        frame_rate: crops a second; by default more than any of `random_clip` has, so that all of them are taken.
        windows: what it should tell apart, cut for its config; random clips if None.
        device: where the models see them.
    """
    from merfast.create import create

    checkpoints = out.with_name(f"{out.name}-checkpoints")
    voice, face = make_checkpoints(checkpoints, size, seed)
    made = create(
        out, audio=[f"{VOICE}={voice}"], video=[f"{FACE}={face}"], layer="afg", frame_rate=frame_rate, max_window=16.0
    )
    shutil.rmtree(checkpoints)
    torch.manual_seed(seed)
    for encoder in made.model.foundations.values():
        torch.nn.init.normal_(encoder.network.layers.score, std=0.5)
        torch.nn.init.normal_(encoder.network.layers.bias, std=0.5)
    seen = windows(made.config) if windows else [window_of(random_clip(1000 + seed + i)) for i in range(12)]
    tell_apart(made.model.to(device), seen)
    bundles.save(out, made.config, made.model.cpu())


def kept_bundle(work: Path, size: str, device: str = "cpu") -> Path:
    """A bundle for `random_clip`, made in a folder unless it is there; returns its own folder."""
    out = work / f"random-{size}"
    if not out.exists():
        make_bundle(out, size, device=device)
    return out


def window_of(clip: Media) -> Window:
    """A clip as the engine would cut it."""
    return Window(0.0, clip.seconds, clip.audio, clip.crops, len(clip.crops), 0, {})


def tell_apart(model: FusedModel, windows: Sequence[Window], logits: float = 1.5) -> None:
    """Set the decoder so that what each structure says varies over clips, about as much as in a trained model.

    Its weights keep their directions. What goes into the softmax gets mean 0 and the deviation `logits` for each class,
    what goes into the hidden units of the valence mean 0 and deviation 1.
    """
    decoder = model.decoder
    with torch.no_grad():
        # One at a time: encoders keep their states, and these are large.
        each = [model.fuse(model.encode(*inputs_of(Batch.pack([w]), decoder.emotion_weight.device))) for w in windows]
        vectors = torch.cat(each, 1)  # [S, B, h]
        width = vectors.shape[-1]
        for weight, bias, deviation in (
            (decoder.emotion_weight, decoder.emotion_bias, logits),
            (decoder.hidden_weight, decoder.hidden_bias, 1.0),
        ):
            part = weight[..., :width]
            part *= deviation / torch.einsum("sbh,skh->sbk", vectors, part).std(1)[..., None]
            bias.copy_(-torch.einsum("sh,skh->sk", vectors.mean(1), part))


def random_clip(seed: int, seconds: float | None = None) -> Media:
    """2 to 8 s of tones that change, in noise, and pictures in waves of colours that wander."""
    rng = np.random.default_rng(seed)
    count = int((seconds or rng.uniform(2, 8)) * SAMPLE_RATE)
    time = np.arange(count) / SAMPLE_RATE
    pitch = rng.uniform(80, 400) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.3, 3) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    tones = np.sum([rng.uniform(0.05, 1) / k * np.sin(k * phase) for k in range(1, 9)], axis=0)
    loud = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(1, 6) * time + rng.uniform(0, 6))
    audio = 0.1 * tones * loud + rng.uniform(0.002, 0.1) * rng.standard_normal(count)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    picture = rng.uniform(0, 255, 3) + rng.normal(0, 12, (SIDE, SIDE, 3))
    for py, px, wave in rng.uniform((0, 0, 2), (1, 1, 30), (6, 3)):
        blob = np.exp(-12 * ((y - py) ** 2 + (x - px) ** 2)) * np.cos(wave * (x + y))
        picture += blob[..., None] * rng.uniform(-160, 160, 3)
    still = picture.clip(0, 255).astype(np.uint8)
    return Media(audio.astype(np.float32), np.stack([np.roll(still, (2 * t, t), (0, 1)) for t in range(CROPS)]))


def write_clips(folder: Path, count: int, seed: int = 0, seconds: float | None = None) -> None:
    """Random clips, one file of samples and one of crops each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        clip = random_clip(seed + i, seconds)
        np.save(folder / f"{i:03d}-audio.npy", clip.audio)
        np.save(folder / f"{i:03d}-crops.npy", clip.crops)


def read_clips(folder: Path, count: int) -> list[Media]:
    """The first `count` clips of a folder."""
    return [Media(np.load(folder / f"{i:03d}-audio.npy"), np.load(folder / f"{i:03d}-crops.npy")) for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.pipeline_inputs")
    parser.add_argument("--work", type=Path, required=True, help="folder to make bundles in, unless they are there")
    parser.add_argument("--sizes", default="base", help="of them, with commas")
    parser.add_argument("--device", default="cpu", help="where the models see the clips that they are to tell apart")
    options = parser.parse_args()
    for size in options.sizes.split(","):
        kept_bundle(options.work, size, options.device)


if __name__ == "__main__":
    main()
