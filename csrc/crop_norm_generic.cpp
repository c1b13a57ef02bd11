#include "crop_norm_kernel.h"
#include "vec_generic.h"

namespace merfast {

const CropNormIsa& crop_norm_generic() {
    static constexpr CropNormIsa isa{Vec::lanes, crop<Vec>};
    return isa;
}

}  // namespace merfast
