#include "afg_kernel.h"
#include "vec_avx2.h"

namespace merfast {

const AfgIsa<float>& afg_avx2() {
    static constexpr AfgIsa<float> isa = afg_isa<Vec, Columns<Vec>>();
    return isa;
}

}  // namespace merfast
