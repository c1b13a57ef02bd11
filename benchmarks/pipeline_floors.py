"""The least that `benchmarks.pipeline` could take: multiplications over a measured rate, bytes over a bandwidth."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.pipeline_inputs import CROPS, SIDE, SIZES


def floors(size: str, samples: Sequence[int], device: str, threads: int) -> dict[str, Any]:
    """FLOPs of the networks for clips of so many samples, rates of matrix products here, and what follows.

    Returns:
        Numbers by name, and `lines` to print.
    """
    import transformers

    voice, face = transformers.HubertConfig(**SIZES[size][0]), transformers.ViTConfig(**SIZES[size][1])
    hubert, vit = sum(speech_flops(voice, n) for n in samples), CROPS * len(samples) * vision_flops(face)
    torch.set_num_threads(threads)
    rates = {name: product_rate(dtype, device) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    weights = 4 * sum(layer_weights(c) * c.num_hidden_layers for c in (voice, face))
    moved = bandwidth(device)
    lines = [f"floor, by FLOPs: voice {hubert / 1e9:.0f} G, face {vit / 1e9:.0f} G"]
    lines += [
        f"floor, {name}: {hubert / rate + vit / rate:.2f} s (voice {hubert / rate:.2f}, face {vit / rate:.2f}), where "
        f"products of 2048 x 2048 run at {rate / 1e9:.0f} GFLOP/s"
        for name, rate in rates.items()
    ]
    lines.append(
        f"floor, by bytes: the layers' fp32 weights, {weights / 2**20:.0f} MiB, once a clip: "
        f"{len(samples) * weights / moved:.2f} s, where a copy moves {moved / 1e9:.0f} GB/s"
    )
    numbers = {"voice_flops": hubert, "face_flops": vit, "flops_per_second": rates, "bytes_per_second": moved}
    return {**numbers, "weights_bytes": weights, "lines": lines}


def layer_weights(config: Any) -> int:
    """Weights in the matrices of a layer."""
    d, f = config.hidden_size, config.intermediate_size
    return int(4 * d * d + 2 * d * f)


def layers_flops(config: Any, rows: int) -> int:
    """FLOPs of all layers for a sequence of so many rows."""
    each = 2 * rows * layer_weights(config) + 4 * rows * rows * config.hidden_size
    return int(config.num_hidden_layers * each)


def speech_flops(config: Any, samples: int) -> int:
    """FLOPs of HuBERT, convolutions and matrix products alone."""
    total, inputs, frames = 0, 1, samples
    for outputs, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        total += 2 * frames * inputs * outputs * kernel
        inputs = outputs
    d = config.hidden_size
    total += 2 * frames * inputs * d
    total += 2 * frames * d * d // config.num_conv_pos_embedding_groups * config.num_conv_pos_embeddings
    return int(total + layers_flops(config, frames))


def vision_flops(config: Any) -> int:
    """FLOPs of ViT for a picture, all tokens of all layers."""
    patches = (SIDE // config.patch_size) ** 2
    return int(2 * patches * config.hidden_size * 3 * config.patch_size**2 + layers_flops(config, patches + 1))


def product_rate(dtype: torch.dtype, device: str, side: int = 2048) -> float:
    """FLOPs a second of a product of square matrices, the best of several, and of torch and oneDNN on the CPU."""
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    seconds = _best(lambda: torch.mm(a, b), device)
    if device == "cpu" and dtype == torch.float32:  # torch's own library does not use all of every processor
        c, d = a.to_mkldnn(), b.to_mkldnn()
        seconds = min(seconds, _best(lambda: torch.nn.functional.linear(c, d), device))
    return 2 * side**3 / seconds


def bandwidth(device: str, size: int = 2**28) -> float:
    """Bytes a second that a copy moves, read and written, the best of several."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _best(call: Callable[[], object], device: str, times: int = 7) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def machine(device: str) -> dict[str, Any]:
    """What this ran on, and with what versions."""
    file = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in file.read_text().splitlines() if line.startswith("model name")]
    processor = f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"
    if device.startswith("cuda"):
        processor = torch.cuda.get_device_properties(device).name
    packages = ("torch", "transformers", "openvino", "onnxruntime", "onnx", "tensorrt", "numpy")
    versions = {n: importlib.metadata.version(n) for n in packages if importlib.util.find_spec(n) is not None}
    return {"processor": processor, "python": platform.python_version(), "load": os.getloadavg(), "versions": versions}
