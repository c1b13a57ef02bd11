"""Small streams and random ragged inputs for the tests of the models."""

import torch

from merfast.config import StreamConfig
from merfast.ops.ragged import Ragged, offsets_from

SIZE = 16
VOICE = StreamConfig("voice", "audio", "logmel", 32, {"layers": 2, "heads": 2, "channels": 8})
TONE = StreamConfig("tone", "audio", "logmel", 16, {"layers": 1, "heads": 2, "channels": 4, "normalise": "band"})
FACE = StreamConfig("face", "video", "facecnn", 24, {"widths": [8, 16]})
EYES = StreamConfig("eyes", "video", "facecnn", 8, {"widths": [4]})


def voices(lengths, seed=0):
    values = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed)) * 0.1
    return Ragged(values, offsets_from(torch.tensor(lengths)))


def crops(lengths, seed=0, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (sum(lengths), size, size, 3), dtype=torch.uint8, generator=generator)
    return Ragged(values, offsets_from(torch.tensor(lengths)))


def one(x, b):
    rows = x.values[x.offsets[b] : x.offsets[b + 1]]
    return Ragged(rows, torch.tensor([0, len(rows)]))


def pick(x, order):
    parts = [one(x, b).values for b in order]
    return Ragged(torch.cat(parts), offsets_from(torch.tensor([len(p) for p in parts])))
