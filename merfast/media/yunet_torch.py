"""YuNet in plain torch: many pictures at a time, on any device, with the answers of OpenCV's `FaceDetectorYN`.

The network is YuNet's 2023mar version (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023): pairs of a
1 x 1 and a depthwise 3 x 3 convolution, a neck that adds coarse features to finer ones, and heads at strides of 8, 16
and 32 pixels. Weights come from the ONNX file, which is read here: it takes no more than a few fields of protocol
buffers. Before the network a picture gets black borders on the right and below, to multiples of 32; after it a cell's
score is sqrt(class * object), its box lies around the cell's corner. Scores and the best cells are found on the device,
and one small tensor is brought to the host, where their boxes are computed and thinned out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from merfast.errors import UnavailableError
from merfast.media.faces import YUNET_MOST, YUNET_SMALLEST, Box, yunet_boxes
from merfast.media.transfer import to_host

STRIDES = (8, 16, 32)

_UNITS = ((16, 16), (16, 16), (16, 32), (32, 32), (32, 64), *[(64, 64)] * 6, *[(64, 64)] * 3)
"""Channels into and out of each pair of convolutions: 11 of the backbone, then the neck's, the coarsest first."""

_HEADS = {"class": 1, "box": 4, "object": 1, "landmarks": 10}
"""Channels of each head, in the file's order; each is there for every stride."""

_Convolution = tuple[Tensor, Tensor]
"""Weight and bias."""


class YuNetTorch:
    """The YuNet detector for batches of pictures; may be used from many threads at once.

    Args:
        model: the file `face_detection_yunet_2023mar.onnx`.
        device: where it runs.
        channels_last: keep the channels of a pixel together (`benchmarks/bench_faces_cuda.py` has both).

    Raises:
        UnavailableError: the file cannot be read, or holds another network.
    """

    def __init__(self, model: Path, device: torch.device | str, *, channels_last: bool = False) -> None:
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        layers = [(w.to(device), b.to(device)) for w, b in _layers(model)]
        self.device = torch.device(device)
        self._stem, units, self._heads = layers[0], layers[1:29], layers[29:]
        self._units = list(zip(units[::2], units[1::2], strict=True))

    def detect(self, pictures: Tensor) -> list[list[Box]]:
        """Boxes of the faces in each picture, in its pixels, the surest first.

        Args:
            pictures: `[N, h, w, 3]` uint8 RGB on the detector's device.
        """
        height, width = pictures.shape[1:3]
        if not len(pictures) or min(height, width) < YUNET_SMALLEST:
            return [[] for _ in pictures]
        with torch.inference_mode():
            cells = to_host(self.best_cells(pictures))
        grid = _grid(height, width)
        return [yunet_boxes(_rows(c, grid)) for c in cells]

    def best_cells(self, pictures: Tensor) -> Tensor:
        """`[N, K, 6]` fp32: score, four numbers of the box, and number of the K best cells of each picture."""
        height, width = pictures.shape[1:3]
        x = functional.pad(pictures.permute(0, 3, 1, 2).float(), (0, -width % 32, 0, -height % 32))
        x = x.contiguous(memory_format=self._format)
        out = torch.cat([level.flatten(2) for level in self._network(x)], 2)  # [N, 6, cells]
        scores = (out[:, 0].sigmoid() * out[:, 5].sigmoid()).sqrt()
        best, cell = scores.topk(min(YUNET_MOST, scores.shape[1]))
        boxes = out[:, 1:5].gather(2, cell[:, None].expand(-1, 4, -1)).transpose(1, 2)
        return torch.cat((best[..., None], boxes, cell[..., None].float()), 2)

    def _network(self, x: Tensor) -> list[Tensor]:
        """`[N, 6, rows, columns]` of each stride: class, four numbers of the box, object."""
        x = functional.conv2d(x, *self._stem, stride=2, padding=1).relu_()
        kept = []
        for i, unit in enumerate(self._units[:11]):
            if i in (1, 5, 7, 9):
                x = functional.max_pool2d(x, 2)
            x = _unit(x, unit).relu_()
            if i in (6, 8, 10):
                kept.append(x)
        fine, middle, coarse = kept
        coarse = _unit(coarse, self._units[11]).relu_()
        middle = _unit(middle + functional.interpolate(coarse, scale_factor=2.0), self._units[12]).relu_()
        fine = _unit(fine + functional.interpolate(middle, scale_factor=2.0), self._units[13]).relu_()
        return [_unit(x, (self._heads[2 * i], self._heads[2 * i + 1])) for i, x in enumerate((fine, middle, coarse))]


@lru_cache(maxsize=16)
def yunet_on(model: Path, device: torch.device) -> YuNetTorch:
    """The detector on a device, made once for all that ask: its weights do not change.

    Raises:
        UnavailableError: as `YuNetTorch`.
    """
    return YuNetTorch(model, device)


def unreadable(model: Path) -> str:
    """Why this file cannot be used here, or nothing."""
    try:
        _convolutions(model)
    except UnavailableError as error:
        return str(error)
    return ""


def _unit(x: Tensor, unit: tuple[_Convolution, _Convolution]) -> Tensor:
    """A 1 x 1 convolution, and a 3 x 3 one of each channel by itself."""
    mixed = functional.conv2d(x, *unit[0])
    return functional.conv2d(mixed, *unit[1], padding=1, groups=mixed.shape[1])


def _grid(height: int, width: int) -> npt.NDArray[np.float32]:
    """`[cells, 3]`: column, row and stride of the cells of a picture, the finest first."""
    parts = []
    for stride in STRIDES:
        rows, columns = ((side + 31) // 32 * 32 // stride for side in (height, width))
        row, column = np.divmod(np.arange(rows * columns), columns)
        parts.append(np.stack((column, row, np.full_like(row, stride)), 1))
    return np.concatenate(parts).astype(np.float32)


def _rows(cells: npt.NDArray[np.float32], grid: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`[K, 5]`: left, top, width, height in pixels, and score, of cells as `YuNetTorch.best_cells` gives them."""
    place = grid[cells[:, 5].astype(np.int64)]
    column, row, stride = place.T
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out later
        wide, high = np.exp(cells[:, 3]) * stride, np.exp(cells[:, 4]) * stride
        left, top = (column + cells[:, 1]) * stride - wide / 2, (row + cells[:, 2]) * stride - high / 2
    return np.stack((left, top, wide, high, cells[:, 0]), 1)


def _layers(model: Path) -> list[_Convolution]:
    """The stem, two convolutions for each of `_UNITS`, and two for the joint heads of each stride."""
    found = _convolutions(model)
    stem, rest = found[0], found[29:]
    # The file was made for pictures in BGR.
    layers = [(stem[0].flip(1).contiguous(), stem[1]), *found[1:29]]
    heads = {}
    for k, head in enumerate(_HEADS):
        heads[head] = rest[6 * k : 6 * k + 6]
    for level in range(3):
        for half in (2 * level, 2 * level + 1):
            parts = [heads[head][half] for head in ("class", "box", "object")]
            layers.append((torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts])))
    return layers


def _convolutions(model: Path) -> list[_Convolution]:
    """Weights and biases in the order of the file's convolutions.

    Raises:
        UnavailableError: the file cannot be read, or holds another network.
    """
    expected = [(16, 3, 3, 3)]
    for before, after in _UNITS:
        expected += [(after, before, 1, 1), (after, 1, 3, 3)]
    for channels in _HEADS.values():
        expected += [(channels, 64, 1, 1), (channels, 1, 3, 3)] * 3
    try:
        found = list(_read_convolutions(model.read_bytes()))
    except OSError as error:
        raise UnavailableError(f"detector 'yunet': {model} cannot be read ({error.strerror or error})") from error
    except (ValueError, IndexError, KeyError, RuntimeError) as error:
        raise UnavailableError(f"detector 'yunet': {model} is no ONNX file with YuNet's weights ({error})") from error
    if [tuple(w.shape) for w, _ in found] != expected or any(b.shape != w.shape[:1] for w, b in found):
        raise UnavailableError(
            f"detector 'yunet': {model} holds another network: got {len(found)} convolutions, expected the "
            f"{len(expected)} of face_detection_yunet_2023mar.onnx"
        )
    return found


def _read_convolutions(content: bytes) -> Iterator[_Convolution]:
    """ONNX (onnx.proto3): ModelProto.graph is field 7; GraphProto.node 1, initializer 5."""
    nodes: list[list[str]] = []
    tensors: dict[str, Tensor] = {}
    for graph in (value for number, value in _fields(content) if number == 7):
        for number, value in _fields(graph):
            if number == 1:  # NodeProto: input 1, op_type 4
                fields = list(_fields(value))
                if any(n == 4 and v == b"Conv" for n, v in fields):
                    nodes.append([v.decode() for n, v in fields if n == 1])
            elif number == 5:
                name, tensor = _tensor(value)
                tensors[name] = tensor
    for _, weight, bias in nodes:
        yield tensors[weight], tensors[bias]


def _tensor(content: bytes) -> tuple[str, Tensor]:
    """TensorProto: dims 1, data_type 2, name 8, raw_data 9; only fp32 has its values read."""
    name, raw, shape, kind = "", b"", list[int](), b""
    for number, value in _fields(content):
        if number == 1:
            shape.append(int.from_bytes(value, "little"))
        elif number == 2:
            kind = value
        elif number == 8:
            name = value.decode()
        elif number == 9:
            raw = value
    if int.from_bytes(kind, "little") != 1:  # FLOAT
        return name, torch.empty(0)
    return name, torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32)).reshape(shape)


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of a message's fields (protobuf.dev, "Encoding"); whole numbers in little-endian bytes."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        if key & 7 == 0:
            value, at = _varint(content, at)
            yield key >> 3, value.to_bytes(10, "little")
            continue
        if key & 7 == 2:
            size, at = _varint(content, at)
        elif key & 7 in (1, 5):
            size = 8 if key & 7 == 1 else 4
        else:
            raise ValueError(f"a field of wire type {key & 7}")
        if at + size > len(content):
            raise ValueError("it ends within a field")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A whole number, seven bits in each byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")
