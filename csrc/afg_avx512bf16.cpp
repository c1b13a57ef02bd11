#include "afg_kernel.h"
#include "vec_avx512bf16.h"

namespace merfast {

const AfgIsa<uint16_t>& afg_avx512bf16() {
    static constexpr AfgIsa<uint16_t> isa = afg_isa<Bf16Vec, Bf16Pairs>();
    return isa;
}

}  // namespace merfast
