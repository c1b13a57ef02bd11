"""Compiles Triton kernels ahead of time, without a GPU, and says what they would use of one.

    python tests/triton/aot.py afg        # cases of tests/triton/aot_afg.py

Prints registers a thread, shared memory, spilled bytes and tensor-core instructions for each case and architecture.
Fails if a kernel spills, needs more shared memory than the architecture has, or lacks the instructions that a case
expects.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90)
SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory a block may use (CUDA C++ programming guide, compute capabilities)."""


@dataclass(frozen=True)
class Case:
    """One variant of a kernel.

    Attributes:
        name: of the variant.
        kernel: the `triton.jit` function.
        signature: argument name -> type ("*fp32", "*bf16", "i32", ...), in order; constants are named below only.
        constants: constexpr arguments.
        aligned: arguments that are multiples of 16 (pointers from torch always are; sizes may be).
        num_warps, num_stages: as at the launch.
        tensor_cores: whether the kernel must use them: `mma` on 80, `mma` or `wgmma` on 90.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    tensor_cores: bool = False


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel uses: registers a thread, bytes of shared memory a block, bytes spilled a thread."""

    registers: int
    shared: int
    spilled: int
    matrix: str


def compile_case(case: Case, architecture: int) -> Usage:
    """Compile for sm_80 or sm_90."""
    names = list(case.kernel.arg_names)
    signature = {n: case.signature.get(n, "constexpr") for n in names}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in case.aligned}
    source = ASTSource(case.kernel, signature, {(names.index(n),): v for n, v in case.constants.items()}, attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    ptx = compiled.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
        target = re.search(r"^\.target (sm_\w+)", ptx, re.M)
        assert target is not None
        command = [str(ptxas), "-v", f"-arch={target[1]}", str(file), "-o", str(Path(folder) / "kernel.cubin")]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    matrix = "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else ""
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", said))
    registers = max(int(n) for n in re.findall(r"Used (\d+) registers", said))
    return Usage(registers, compiled.metadata.shared, spilled, matrix)


def main(names: list[str]) -> int:
    """Compile the cases of ops and print what they use; the number of failures."""
    failures = 0
    print(f"{'kernel':<44} {'sm':>3} {'registers':>9} {'shared':>8} {'spilled':>8}  matrix")
    for name in names:
        for case in importlib.import_module(f"aot_{name}").CASES:
            for architecture in ARCHITECTURES:
                usage = compile_case(case, architecture)
                fits = not usage.spilled and usage.shared <= SHARED[architecture]
                good = fits and (not case.tensor_cores or bool(usage.matrix))
                failures += not good
                numbers = f"{usage.registers:>9} {usage.shared:>8} {usage.spilled:>8}  {usage.matrix}"
                print(f"{name + ' ' + case.name:<44} {architecture:>3} {numbers}{'' if good else '  FAILED'}")
    return failures


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 125))
