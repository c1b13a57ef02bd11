#include "crop_norm_rows.h"
#include "vec_generic.h"

namespace merfast {

const CropNormIsa& crop_norm_generic() {
    static constexpr CropNormIsa isa{Vec::lanes, crop<Vec>, crop_rows<Vec>};
    return isa;
}

}  // namespace merfast
