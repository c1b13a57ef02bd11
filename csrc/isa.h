// Instruction sets, and what every file compiled for one of them includes.
//
// Note [One definition per instruction set]: the <op>_<isa>.cpp files are compiled with flags that not every
// machine can run. An inline function with external linkage that two objects both emit is kept once, and the
// linker may keep the AVX-512 copy for everybody. So those files include this header, intrinsics and templates
// in unnamed namespaces, and nothing of the standard library that has code in it.
#pragma once

#include <cstdint>

namespace merfast {

enum class Isa { generic, avx2, avx512, avx512bf16 };

namespace {

inline float larger(float a, float b) {
    return a > b ? a : b;
}

}  // namespace
}  // namespace merfast
