#include "decode_kernel.h"
#include "vec_avx512.h"

namespace merfast {

const DecodeIsa& decode_avx512() {
    static constexpr DecodeIsa isa{Vec::lanes, Vec::panel, decode<Vec>};
    return isa;
}

}  // namespace merfast
