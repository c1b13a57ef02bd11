#include "group_norm_gelu_kernel.h"
#include "vec_generic.h"

namespace merfast {

const GroupNormGeluIsa& group_norm_gelu_generic() {
    static constexpr GroupNormGeluIsa isa{group_norm_gelu<Vec>};
    return isa;
}

}  // namespace merfast
