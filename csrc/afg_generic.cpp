#include "afg_kernel.h"
#include "vec_generic.h"

namespace merfast {

const AfgIsa& afg_generic() {
    static constexpr AfgIsa isa{Vec::lanes, Vec::panel, gather<Vec>, merge<Vec>};
    return isa;
}

}  // namespace merfast
