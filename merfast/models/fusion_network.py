"""Fusion, joint decoding and the average as one network over padded features: what a CUDA graph can hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from merfast.models.model import FusedModel
from merfast.ops.ragged import Ragged, offsets_from
from merfast.runtime.spec import Input, Runner, Spec

CLIPS = "clips"


class FusionNetwork:
    """What `FusedModel` makes of its encoders' vectors; a `Runner`.

    Its inputs are the number of rows that each clip has of each stream, `[B, S]`, then the rows of each stream, clip
    after clip. Rows after those of the last clip may be any numbers, and a clip may have none of any stream: so both
    can be padded. It never waits for a device.
    """

    def __init__(self, model: FusedModel) -> None:
        self._model = model
        self._names = [s.name for s in model.config.streams]

    @property
    def spec(self) -> Spec:
        """What goes in; out come the posterior and the valence of each clip, `[B, 7]`."""
        streams = self._model.config.streams
        rows = tuple(Input(s.name, torch.float32, (rows_of(s.name), s.dim)) for s in streams)
        lengths = Input("lengths", torch.int64, (CLIPS, len(streams)))
        return Spec((lengths, *rows), "predictions", {CLIPS: 1, **{rows_of(s.name): 1 for s in streams}})

    def __call__(self, lengths: Tensor, *rows: Tensor) -> Tensor:
        """Inputs of the spec -> `[B, 7]`."""
        sets = zip(rows, lengths.unbind(1), strict=True)
        features = {name: Ragged(x, offsets_from(of)) for name, (x, of) in zip(self._names, sets, strict=True)}
        posterior, valence = self._model.average(self._model.fuse(features))
        return torch.cat([posterior, valence[:, None]], 1)


def rows_of(stream: str) -> str:
    """Name of the axis that counts a stream's rows."""
    return f"{stream} rows"


def run_padded(run: Runner, features: Mapping[str, Ragged]) -> Tensor:
    """Stream name -> vectors `[N, D_s]`, in the order of the model's streams, through what runs a `FusionNetwork`."""
    lengths = torch.stack([x.lengths for x in features.values()], 1)
    return run(lengths, *(x.values for x in features.values()))
