"""Encoders that gather over their layers by attention: the layers' states are cached, and gathered anew in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from merfast.models.layers import Layers
from merfast.models.model import FusedModel
from merfast.ops.ragged import Ragged, offsets_from


def gatherings(model: FusedModel) -> dict[str, Layers]:
    """Stream name -> what gathers over its encoder's layers, for the streams that have `layer = "afg"`."""
    layers = {name: encoder.network.layers for name, encoder in model.foundations.items()}
    return {name: chosen for name, chosen in layers.items() if chosen.choice == "afg"}


class Apart(Layers):
    """The states that a gathering takes, 1 to L, side by side and in its place."""

    def __init__(self, gathering: Layers) -> None:
        super().__init__("last", gathering.upto, *gathering.shape)
        self.shape = (gathering.upto, *gathering.shape)

    def forward(self, states: Iterator[Tensor]) -> Tensor:
        """States 0 to L, `[..., D]` each -> `[..., L, D]`."""
        return torch.stack(list(islice(states, 1, None)), -2)


@dataclass(frozen=True, eq=False)
class Stacks:
    """Sets of vectors as the states that they are gathered from; they stay in their files until they are picked.

    Attributes:
        sets: `[T, L, D]` each, in the precision that they are kept in.
    """

    sets: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.sets)

    @cached_property
    def lengths(self) -> Tensor:
        """`[B]` int64 vectors in each set."""
        return torch.tensor([len(s) for s in self.sets], dtype=torch.int64)

    @property
    def depth(self) -> int:
        """L."""
        return self.sets[0].shape[1]

    def pick(self, rows: Tensor) -> Ragged:
        """The sets `rows` `[B']`, in the order given, as `[N, L, D]`."""
        return Ragged(torch.cat([self.sets[i] for i in rows.tolist()]), offsets_from(self.lengths[rows]))

    def std(self) -> Tensor:
        """`[L, 1]`, of all numbers of each layer, without having more than one set in memory; 1 if there are none."""
        count, total, squares = 0, torch.zeros(self.depth).double(), torch.zeros(self.depth).double()
        for x in (s.double() for s in self.sets):
            count += x[:, 0].numel()
            total += x.sum((0, 2))
            squares += x.square().sum((0, 2))
        if not count:
            return torch.ones(self.depth, 1)
        return (squares / count - (total / count).square()).clamp(min=0).sqrt().float()[:, None]
