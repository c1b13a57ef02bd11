#include "afg_kernel.h"
#include "vec_generic.h"

namespace merfast {

const AfgIsa<float>& afg_generic() {
    static constexpr AfgIsa<float> isa = afg_isa<Vec, Columns<Vec>>();
    return isa;
}

}  // namespace merfast
