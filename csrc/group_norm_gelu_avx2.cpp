#include "group_norm_gelu_kernel.h"
#include "vec_avx2.h"

namespace merfast {

const GroupNormGeluIsa& group_norm_gelu_avx2() {
    static constexpr GroupNormGeluIsa isa{group_norm_gelu<Vec>};
    return isa;
}

}  // namespace merfast
