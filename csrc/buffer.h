// Memory for vectors: arrays on a cache line's boundary.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace merfast {

constexpr std::size_t kAlignment = 64;

struct FreeAligned {
    void operator()(void* p) const { ::operator delete[](p, std::align_val_t(kAlignment)); }
};
template <class T>
using Aligned = std::unique_ptr<T[], FreeAligned>;
using AlignedFloats = Aligned<float>;

// Not initialised; of numbers, which need no destructor.
template <class T>
Aligned<T> aligned(int64_t count) {
    return Aligned<T>(
        static_cast<T*>(::operator new[](static_cast<std::size_t>(count) * sizeof(T), std::align_val_t(kAlignment))));
}

inline AlignedFloats aligned_floats(int64_t count) {
    return aligned<float>(count);
}

}  // namespace merfast
