"""Write the untrained mini bundle: `python -m training.make_untrained OUT [--seed 0]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from merfast import bundle
from merfast.config import BundleConfig, Preprocessing, StreamConfig
from merfast.models import FusedModel

CARD = """# merfast-mini (UNTRAINED)

Random weights (seed {seed}): the predictions of this bundle mean nothing. It serves to install, test and time merfast.

- streams: {streams}
- parameters: {parameters:,}
- licence: Apache-2.0
- written by: `python -m training.make_untrained OUT --seed {seed}`
"""


def mini_config(**changes: object) -> BundleConfig:
    """Config of the mini bundle, untrained unless `changes` say otherwise."""
    entries: dict[str, object] = {
        "name": "merfast-mini",
        "trained": False,
        "streams": (
            StreamConfig("voice", "audio", "logmel", 128),
            StreamConfig("face", "video", "facecnn", 192),
        ),
        "preprocessing": Preprocessing(frame_rate=5.0, crop_size=64, face_scale=1.0, max_window=16.0),
        "licence": "Apache-2.0",
    }
    return BundleConfig(**(entries | changes))  # type: ignore[arg-type]


def write(out: Path, seed: int = 0) -> None:
    """Write the bundle and its model card; the same seed gives the same bytes with the same torch."""
    made = f"python -m training.make_untrained OUT --seed {seed}"
    config = mini_config(provenance={"weights": "random, untrained", "made_by": made, "seed": seed})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FusedModel(config)
    bundle.save(out, config, model)
    streams = ", ".join(f"{s.name} ({s.encoder}, {s.dim})" for s in config.streams)
    parameters = sum(p.numel() for p in model.parameters())
    (out / "README.md").write_text(CARD.format(seed=seed, streams=streams, parameters=parameters), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the untrained mini bundle.")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory of the bundle")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    write(options.out, options.seed)


if __name__ == "__main__":
    main()
