"""Joint decoding of emotion and valence with its parameters; see `merfast.ops.decode` for the formulas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from merfast.ops.decode import Decoded, DecodeWeights, decode_structures
from merfast.types import EMOTIONS

CLASS_VALENCE = (0.0, -3.0, 3.5, -3.0, -2.0, 0.5)
"""Placeholder for the classes' mean valence in [-5, 5], in the order of `EMOTIONS`.

Only signs and order follow published norms of the emotions' words (Warriner, Kuperman & Brysbaert 2013); the numbers
come from no data set. Training starts from its own class means instead.
"""


class JointDecoder(nn.Module):
    """Emotion posterior, then valence given it, for S structures at once.

    Args:
        structures: S.
        dim: width of the structures' vectors.
        valence_dim: hidden units of the valence head.
        class_valence: `[6]` mean valence of each class, where mu starts.

    Raises:
        ValueError: `class_valence` is not six numbers.
    """

    def __init__(
        self, structures: int, dim: int, valence_dim: int, class_valence: Sequence[float] = CLASS_VALENCE
    ) -> None:
        super().__init__()
        classes = len(EMOTIONS)
        if len(class_valence) != classes:
            raise ValueError(f"class_valence: got {len(class_valence)} numbers, expected {classes}")
        self.emotion_weight = nn.Parameter(torch.empty(structures, classes, dim))
        self.emotion_bias = nn.Parameter(torch.zeros(structures, classes))
        self.hidden_weight = nn.Parameter(torch.empty(structures, valence_dim, dim + classes))
        self.hidden_bias = nn.Parameter(torch.zeros(structures, valence_dim))
        self.valence_weight = nn.Parameter(torch.empty(structures, valence_dim))
        self.valence_bias = nn.Parameter(torch.zeros(structures))
        # Not repeat: on the meta device, where bundles are checked, that makes torch import sympy.
        self.class_valence = nn.Parameter(torch.tensor([[*class_valence]] * structures, dtype=torch.float32))
        for weight in (self.emotion_weight, self.hidden_weight, self.valence_weight):
            bound = (3 / weight.shape[-1]) ** 0.5  # deviation 1 / sqrt(inputs)
            nn.init.uniform_(weight, -bound, bound)

    @property
    def weights(self) -> DecodeWeights:
        """The parameters as the op takes them."""
        return DecodeWeights(*(getattr(self, name) for name in DecodeWeights._fields))

    def forward(self, z: Tensor) -> Decoded:
        """Structures' vectors `[S, B, dim]` -> what each says; valence is not clamped.

        Raises:
            ValueError: z does not fit.
        """
        return decode_structures(z, self.weights)
