// Memory for vectors: floats on a cache line's boundary.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace merfast {

constexpr std::size_t kAlignment = 64;

struct FreeAligned {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t(kAlignment)); }
};
using AlignedFloats = std::unique_ptr<float[], FreeAligned>;

// Not initialised.
inline AlignedFloats aligned_floats(int64_t count) {
    return AlignedFloats(static_cast<float*>(
        ::operator new[](static_cast<std::size_t>(count) * sizeof(float), std::align_val_t(kAlignment))));
}

}  // namespace merfast
