"""Builds `merfast._C`: one extension, with flags of their own for the sources of each instruction set."""

from __future__ import annotations

import platform
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

# Contraction off: a multiply-add is fused where the source says so and nowhere else, so that a row's result does not
# depend on which copy of an unrolled loop the compiler put it through.
FLAGS = ["-O3", "-ffp-contract=off", "-Wall", "-Wextra"]
AVX2 = ["-mavx2", "-mfma"]
# GCC 12 warns of its own _mm512_undefined_ps() (bug 105593).
AVX512 = [*AVX2, "-mavx512f", "-Wno-maybe-uninitialized"]
ISA_FLAGS = {
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512bf16": [*AVX512, "-mavx512bw", "-mavx512vl", "-mavx512bf16"],
}
X86 = platform.machine() == "x86_64"
BY_ISA = {isa: sorted(glob(f"csrc/*_{isa}.cpp")) for isa in ISA_FLAGS}
SOURCES = sorted(set(glob("csrc/*.cpp")) - {source for sources in BY_ISA.values() for source in sources})


class BuildExt(build_ext):
    """Compiles `<op>_<isa>.cpp` on their own and links them in as objects."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        if X86:
            ext.extra_objects = [
                built
                for isa, flags in ISA_FLAGS.items()
                for built in self.compiler.compile(
                    BY_ISA[isa],
                    output_dir=self.build_temp,
                    macros=ext.define_macros,
                    extra_postargs=[*ext.extra_compile_args, *flags],
                )
            ]
        super().build_extension(ext)


extension = Pybind11Extension(
    "merfast._C",
    SOURCES,
    cxx_std=17,
    define_macros=[("MERFAST_X86", "1")] if X86 else [],
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
    depends=[*sorted(glob("csrc/*.h")), *(source for sources in BY_ISA.values() for source in sources), "setup.py"],
)

with ParallelCompile(default=0):  # as many compilers as there are cores
    setup(ext_modules=[extension], cmdclass={"build_ext": BuildExt})
