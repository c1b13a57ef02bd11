#include "crop_norm_rows.h"
#include "vec_avx2.h"

namespace merfast {

const CropNormIsa& crop_norm_avx2() {
    static constexpr CropNormIsa isa{Vec::lanes, crop<Vec>, crop_rows<Vec>};
    return isa;
}

}  // namespace merfast
