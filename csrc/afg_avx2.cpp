#include "afg_kernel.h"
#include "vec_avx2.h"

namespace merfast {

const AfgIsa& afg_avx2() {
    static constexpr AfgIsa isa{Vec::lanes, Vec::panel, gather<Vec>, merge<Vec>};
    return isa;
}

}  // namespace merfast
