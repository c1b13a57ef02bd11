#include "afg_kernel.h"
#include "vec_avx512.h"

namespace merfast {

const AfgIsa<float>& afg_avx512() {
    static constexpr AfgIsa<float> isa = afg_isa<Vec, Columns<Vec>>();
    return isa;
}

}  // namespace merfast
