"""The face branch: FaceCNN with a linear classifier, trained on grey pictures of faces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from merfast.models.facecnn import FaceCNN, levelled
from merfast.types import EMOTIONS
from training.corpora import Faces
from training.data import DataError
from training.loop import Schedule, fit
from training.metrics import accuracy, class_f1, weighted_f1


@dataclass(frozen=True)
class FaceRecipe:
    """How the face branch is trained. Ranges are drawn from evenly, one number for each picture.

    Attributes:
        schedule: see `training.loop`.
        batch: pictures.
        sizes: side of the pictures in pixels; each size has an equal part of the epochs, the last should be the
            encoder's crop size. Small pictures come first because they cost less.
        smoothing: of the labels.
        rotation: up to so many degrees either way.
        scale, stretch: the logarithm of both sides, and of their ratio, up to so much either way.
        shift: along either axis, up to that fraction of the side either way.
        gamma: the logarithm of the exponent of brightness, up to so much either way.
        light: brightness at the borders, up to that fraction more on one side and less on the other.
        blurred, blur: fraction of the pictures that are blurred; deviation of the Gaussian in 48ths of the side.
        noise: deviation, up to that fraction of the picture's own, on half of the pictures.
        erased, hole: fraction of the pictures with a rectangle of one grey; its area as a fraction of the picture.
    """

    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=45, lr=2e-3, warmup=0.06, weight_decay=0.05, ema=0.999, clip=0.0, precision="bf16"
        )
    )
    batch: int = 64
    sizes: tuple[int, ...] = (40, 40, 48)
    smoothing: float = 0.1
    rotation: float = 10.0
    scale: float = 0.1
    stretch: float = 0.06
    shift: float = 0.06
    gamma: float = 0.3
    light: float = 0.2
    blurred: float = 0.12
    blur: tuple[float, float] = (0.4, 1.5)
    noise: float = 0.08
    erased: float = 0.3
    hole: tuple[float, float] = (0.02, 0.12)

    def __post_init__(self) -> None:
        if self.batch < 2 or not self.sizes or min(self.sizes) < 8:
            raise DataError(f"face: expected a batch above 1 and sizes of 8 or more, got {self.batch}, {self.sizes}")
        if not 0 <= self.smoothing < 1 or not 0 < self.blur[0] <= self.blur[1] or not 0 < self.hole[0] <= self.hole[1]:
            raise DataError(f"face: expected smoothing in [0, 1), blur and hole from above 0 upwards, got {self}")

    def size(self, epoch: int) -> int:
        """Side of the pictures in an epoch, counted from 0."""
        return self.sizes[min(epoch * len(self.sizes) // self.schedule.epochs, len(self.sizes) - 1)]


class FaceBranch(nn.Module):
    """Face encoder and a linear classifier of its vectors."""

    def __init__(self, encoder: FaceCNN) -> None:
        super().__init__()
        self.encoder = encoder
        self.classify = nn.Linear(encoder.dim, len(EMOTIONS))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, luma: Tensor) -> Tensor:
        """Normalised luma `[N, 1, S, S]` -> logits `[N, 6]`, in float32."""
        logits: Tensor = self.classify(self.encoder.encode(luma))
        return logits.float()


def augment(images: Tensor, generator: torch.Generator, size: int, recipe: FaceRecipe) -> Tensor:
    """Pictures `[N, H, W]` uint8 as another camera and other light might show them: luma `[N, 1, S, S]`.

    The steps are those of a camera: pose, light, optics, the encoder's own normalisation, sensor noise; then a hole.
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    def either_way(limit: float) -> Tensor:
        return uniform(-limit, limit)

    def chosen(fraction: float) -> Tensor:
        return uniform(0, 1) < fraction

    def wide(x: Tensor) -> Tensor:
        return x[:, None, None, None]

    angle, scale = torch.deg2rad(either_way(recipe.rotation)), either_way(recipe.scale).exp()
    across = either_way(recipe.stretch).exp() * torch.where(chosen(0.5), -1.0, 1.0)  # mirrored
    cos, sin = angle.cos() * scale, angle.sin() * scale
    to_x = torch.stack([cos * across, -sin, 2 * either_way(recipe.shift)], 1)
    to_y = torch.stack([sin * across, cos, 2 * either_way(recipe.shift)], 1)
    grid = functional.affine_grid(torch.stack([to_x, to_y], 1), [n, 1, size, size], align_corners=False)
    x = functional.grid_sample(images[:, None].float(), grid, padding_mode="border", align_corners=False)

    x = 255 * (x / 255).clamp(min=1e-3) ** wide(either_way(recipe.gamma).exp())
    ramp = torch.linspace(-1, 1, size)
    x = x * (1 + wide(either_way(recipe.light)) * ramp + wide(either_way(recipe.light)) * ramp[:, None])

    rows = chosen(recipe.blurred).nonzero()[:, 0]
    sigma = uniform(*recipe.blur) * size / 48
    if len(rows):
        x[rows] = blur(x[rows], sigma[rows])

    x = levelled(x)
    deviation = uniform(0, recipe.noise) * chosen(0.5)
    x = x + wide(deviation) * torch.randn(x.shape, generator=generator)

    area, ratio = uniform(*recipe.hole), either_way(0.9).exp()
    at = (torch.arange(size) + 0.5) / size
    in_y = (at - uniform(0, 1, 1)).abs() < (area * ratio).sqrt()[:, None] / 2  # [N, S]
    in_x = (at - uniform(0, 1, 1)).abs() < (area / ratio).sqrt()[:, None] / 2
    hole = in_y[:, :, None] & in_x[:, None, :] & chosen(recipe.erased)[:, None, None]
    return torch.where(hole[:, None], torch.randn(n, 1, 1, 1, generator=generator), x)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of pictures `[N, 1, H, W]`, of deviation sigma `[N]` in pixels; beyond it the edge is repeated."""
    n = len(x)
    radius = math.ceil(3 * float(sigma.max()))
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.softmax(-(offsets**2) / (2 * sigma[:, None] ** 2), 1)
    x = functional.pad(x, [radius] * 4, mode="replicate").transpose(0, 1)  # one group of channels for each picture
    x = functional.conv2d(x, weights[:, None, None, :], groups=n)
    return functional.conv2d(x, weights[:, None, :, None], groups=n).transpose(0, 1)


@torch.inference_mode()
def posteriors(branch: FaceBranch, images: Tensor, batch: int = 256) -> Tensor:
    """`[N, 6]` of pictures `[N, S, S]` uint8 or float, S the encoder's crop size; in float32, one view of each."""
    side = branch.encoder.crop_size
    if images.shape[1:] != (side, side):
        raise ValueError(f"posteriors: got pictures {list(images.shape)}, expected [N, {side}, {side}]")
    was_training = branch.training
    branch.eval()
    try:
        parts = [branch(levelled(part.float())[:, None]).softmax(1) for part in torch.split(images, batch)]
    finally:
        branch.train(was_training)
    return torch.cat(parts)


def evaluate(branch: FaceBranch, faces: Faces) -> dict[str, float]:
    """ "accuracy", "wf1", and "f1_" with each emotion."""
    predicted = posteriors(branch, torch.from_numpy(faces.images)).argmax(1).numpy()
    each = {f"f1_{e}": float(f) for e, f in zip(EMOTIONS, class_f1(faces.labels, predicted), strict=True)}
    return {"accuracy": accuracy(faces.labels, predicted), "wf1": weighted_f1(faces.labels, predicted)} | each


def robustness(branch: FaceBranch, faces: Faces) -> dict[str, float]:
    """Accuracy with the pictures blurred (Gaussian, 1 and 2 pixels) and shifted by a tenth (mean of four ways)."""
    images = torch.from_numpy(faces.images).float()
    step = round(images.shape[1] / 10)
    padded = functional.pad(images[:, None], [step] * 4, mode="replicate")[:, 0]
    side = images.shape[1]

    def score(changed: Tensor) -> float:
        return accuracy(faces.labels, posteriors(branch, changed).argmax(1).numpy())

    def moved(y: int, x: int) -> float:
        return score(padded[:, y : y + side, x : x + side])

    out = {
        f"blur_{sigma}": score(blur(images[:, None], torch.full((len(images),), float(sigma)))[:, 0])
        for sigma in (1, 2)
    }
    ways = [moved(0, step), moved(2 * step, step), moved(step, 0), moved(step, 2 * step)]
    return out | {"shift_10": sum(ways) / len(ways)}


def train_face(
    encoder: FaceCNN,
    train: Faces,
    val: Faces,
    recipe: FaceRecipe,
    *,
    folder: Path,
    seed: int,
    fingerprint: str = "",
    progress: Callable[[str], None] | None = None,
) -> FaceBranch:
    """Train an encoder with a fresh classifier; returns a copy in evaluation mode.

    Args:
        encoder: with the weights to start from.
        train: what is learned from.
        val: what is scored after each epoch; nothing is chosen by it unless the schedule has patience.
        recipe: see there.
        folder, seed, fingerprint, progress: as `training.loop.fit` takes them.

    Raises:
        DataError: the last size is not the encoder's, fewer pictures than a batch, or as `training.loop.fit`.
    """
    if recipe.sizes[-1] != encoder.crop_size or train.images.shape[1] != encoder.crop_size:
        got = f"crop size {encoder.crop_size}, sizes {list(recipe.sizes)}, pictures {list(train.images.shape)}"
        raise DataError(f"face: expected the last size and the pictures to be of the encoder's crop size, got {got}")
    steps = len(train) // recipe.batch
    if not steps:
        raise DataError(f"face: got {len(train)} pictures, expected at least a batch of {recipe.batch}")
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)

    def batches(epoch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(images), generator=generator)
        for rows in torch.split(order[: steps * recipe.batch], recipe.batch):
            yield augment(images[rows], generator, recipe.size(epoch), recipe), labels[rows]

    def loss(branch: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        luma, labels = batch
        return functional.cross_entropy(branch(luma), labels, label_smoothing=recipe.smoothing)

    def judge(branch: nn.Module, epoch: int) -> dict[str, float]:
        assert isinstance(branch, FaceBranch)
        return {"score" if k == "accuracy" else k: v for k, v in evaluate(branch, val).items()}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        branch = FaceBranch(encoder)
    return fit(
        branch,
        recipe.schedule,
        folder=folder,
        seed=seed,
        batches=batches,
        steps=steps,
        loss=loss,
        score=judge,
        fingerprint=fingerprint,
        progress=progress,
    )
