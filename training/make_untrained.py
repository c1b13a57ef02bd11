"""Write the untrained mini bundle: `python -m training.make_untrained OUT [--seed 0]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from merfast import bundle
from merfast.config import BundleConfig
from merfast.models import FusedModel
from training.recipe import read_recipe

MINI = Path(__file__).parent / "recipes" / "mini.toml"

CARD = """# merfast-mini (UNTRAINED)

Random weights (seed {seed}): the predictions of this bundle mean nothing. It serves to install, test and time merfast.

- streams: {streams}
- parameters: {parameters:,}
- licence: Apache-2.0
- written by: `python -m training.make_untrained OUT --seed {seed}`
"""


def mini_config(**changes: object) -> BundleConfig:
    """Config of the mini bundle, untrained unless `changes` say otherwise."""
    return read_recipe(MINI).bundle_config(**({"licence": "Apache-2.0"} | changes))


def write(out: Path, seed: int = 0, config: BundleConfig | None = None) -> None:
    """Write the bundle, the mini one unless `config` is given, and its model card.

    The same seed gives the same bytes with the same torch.
    """
    made = f"python -m training.make_untrained OUT --seed {seed}"
    provenance = {"weights": "random, untrained", "made_by": made, "seed": seed}
    config = replace(config or mini_config(), provenance=provenance)
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
