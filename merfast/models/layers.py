"""Which layers of an encoder are given: one, their mean, or their gathering by attention.

A network gives its hidden states one after another, and nothing here keeps more than one of them: what comes after the
last one that is wanted is not computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn


class Layers(nn.Module):
    """The states that are wanted, out of those numbered 0 to L, as one.

    Args:
        choice: "last", a number from 0 to L, "mean" of 1 to L, or "afg": attention-guided feature gathering over the
            set of the states 1 to L, for each vector by itself.
        last: L.
        dim: width of the states that are wanted.
        attention_dim: width of the energies' hidden layer, for "afg".

    Raises:
        ValueError: there is no such choice.
    """

    def __init__(self, choice: str | int, last: int, dim: int, attention_dim: int = 64) -> None:
        super().__init__()
        number = isinstance(choice, int) and not isinstance(choice, bool)
        if choice not in ("last", "mean", "afg") and not (number and 0 <= int(choice) <= last):
            raise ValueError(f"layer: got {choice!r}, expected 'last', 'mean', 'afg' or a number from 0 to {last}")
        if isinstance(attention_dim, bool) or not isinstance(attention_dim, int) or attention_dim < 1:
            raise ValueError(f"attention_dim: got {attention_dim!r}, expected a whole number from 1 on")
        self.choice: str | int = "last" if choice == last else choice
        self.upto = int(choice) if number else last
        """Number of the last state that is needed."""
        self.shape: tuple[int, ...] = (dim,)
        """What is given for each vector."""
        if choice == "afg":
            self.weight = nn.Parameter(torch.empty(attention_dim, dim))
            self.bias = nn.Parameter(torch.zeros(attention_dim))
            # All layers alike until it is trained.
            self.score = nn.Parameter(torch.zeros(attention_dim))
            nn.init.xavier_uniform_(self.weight)

    def forward(self, states: Iterator[Tensor]) -> Tensor:
        """States `[..., D]` in their order -> `[..., D]`."""
        if self.choice == "mean":
            return self.mean(islice(states, 1, None))
        if self.choice == "afg":
            return self.gather(islice(states, 1, None))
        return next(islice(states, self.upto, None))

    def mean(self, states: Iterator[Tensor]) -> Tensor:
        """Their sum over their number, in fp32."""
        count, total = 1, next(states).float()
        for state in states:
            total = total + state
            count += 1
        return total / count

    def gather(self, states: Iterator[Tensor]) -> Tensor:
        """z = sum_l a_l x_l with a = softmax over l of u . tanh(W x_l + b), the softmax online and in fp32.

        The formula is that of `merfast.ops.afg`, with one head. For each state the sums so far are brought to the new
        maximum of the energies, so that a state is needed no longer than for its turn.
        """
        state = next(states)
        top = self.energy(state)  # [..., 1]
        total, raised = state.float(), torch.ones_like(top)
        for state in states:
            energy = self.energy(state)
            higher = torch.maximum(top, energy)
            old, new = torch.exp(top - higher), torch.exp(energy - higher)
            total, raised, top = total * old + state * new, raised * old + new, higher
        return total / raised

    def energy(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(nn.functional.linear(x, self.weight, self.bias))
        return (hidden * self.score).float().sum(-1, keepdim=True)
