#include "afg_kernel.h"
#include "vec_avx512.h"

namespace merfast {

const AfgIsa& afg_avx512() {
    static constexpr AfgIsa isa{Vec::lanes, Vec::panel, gather<Vec>, merge<Vec>};
    return isa;
}

}  // namespace merfast
