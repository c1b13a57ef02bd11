"""Tries block sizes of the Triton kernels on a GPU and prints what they take, so that formulas can be set by hand.

    python3 -m benchmarks.tune afg                       # or decode, group_norm_gelu, crop_norm
    python3 -m benchmarks.tune afg --shape "B=1 T=500 D=1024 bf16"

A tool for those who change the kernels: merfast itself never tunes. Shapes are the benchmarks'. The first row is what
the code does now; other choices follow, fastest first. Those whose result is off, or that the GPU has no room for, are
counted at the end.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.cuda_timing import INTERPRETED, median_seconds

CANDIDATES: dict[str, dict[str, Sequence[Any]]] = {
    "afg": {
        "BLOCK_T": (16, 32, 64, 128),
        "BLOCK_D": (32, 64, 128),
        "BLOCK_S": (32, 64, 128, 256),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4),
    },
    "group_norm_gelu": {"BT": (1024, 2048, 4096, 8192), "num_warps": (2, 4, 8, 16)},
    "decode": {"DEPTH": (32, 64, 128), "HIDDEN": (32, 64, 128), "WARPS": (2, 4, 8)},
    "crop_norm": {"BLOCK": (128, 256, 512, 1024)},
}
"""For each op the values to try: of keys of the module's `launch_options`, or else of the module's constants."""

Choice = Mapping[str, Any]


@contextmanager
def choose(module: Any, choice: Choice) -> Iterator[None]:
    """Run the op's kernel with these values instead of the module's own."""
    if hasattr(module, "launch_options"):
        formula = module.launch_options
        changes: dict[str, Any] = {"launch_options": lambda *args, **kw: {**formula(*args, **kw), **choice}}
    else:
        # A constant that differs by dtype is a mapping.
        changes = {
            name: dict.fromkeys(old, value) if isinstance(old := getattr(module, name), dict) else value
            for name, value in choice.items()
        }
    with patch.multiple(module, **changes):
        yield


def choices(op: str) -> Iterator[Choice]:
    """The present one, which changes nothing, and then every combination."""
    yield {}
    names = CANDIDATES[op]
    for values in itertools.product(*names.values()):
        yield dict(zip(names, values, strict=True))


def attempt(module: Any, choice: Choice, calls_for: Callable[[], Sequence[Callable[[], object]]]) -> float | str:
    """Seconds of a call, or why there are none."""
    with choose(module, choice) if choice else nullcontext():
        try:
            return median_seconds(calls_for(), rounds=1 if INTERPRETED else 20)
        except AssertionError as error:
            return f"wrong: {error}"
        except Exception as error:  # what Triton raises for too much shared memory has no stable name
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("op", choices=sorted(CANDIDATES))
    parser.add_argument("--shape", help="one of the benchmark's shapes; all without it")
    parser.add_argument("--top", type=int, default=8, help="rows to print for a shape, besides the present choice")
    options = parser.parse_args(arguments)
    if not INTERPRETED and not torch.cuda.is_available():
        print(f"tune: no CUDA GPU is here: torch {torch.__version__} sees none", file=sys.stderr)
        return 2
    bench = importlib.import_module(f"benchmarks.bench_{options.op}_triton")
    module = importlib.import_module(f"merfast.ops.{options.op}_triton")
    shapes = bench.SIZES if options.op == "crop_norm" else bench.SHAPES
    for shape in [s for s in shapes if options.shape in (None, str(s))]:
        print(f"{options.op} {shape}")
        tried = [(c, attempt(module, c, lambda s=shape: bench.calls_for("triton", s))) for c in choices(options.op)]
        good = sorted([t for t in tried[1:] if isinstance(t[1], float)], key=lambda t: t[1])
        for choice, seconds in [tried[0], *good[: options.top]]:
            time = f"{seconds * 1e6:10.2f} us" if isinstance(seconds, float) else seconds
            print(f"  {time}  {', '.join(f'{k}={v}' for k, v in choice.items()) or 'as it is'}", flush=True)
        failures = sorted({str(t[1]) for t in tried if not isinstance(t[1], float)})
        print(f"  {len(tried) - 1 - len(good)} of {len(tried) - 1} did not run right: {failures[:3]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
