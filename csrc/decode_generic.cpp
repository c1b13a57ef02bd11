#include "decode_kernel.h"
#include "vec_generic.h"

namespace merfast {

const DecodeIsa& decode_generic() {
    static constexpr DecodeIsa isa{Vec::lanes, Vec::panel, decode<Vec>};
    return isa;
}

}  // namespace merfast
