#include "decode_kernel.h"
#include "vec_avx2.h"

namespace merfast {

const DecodeIsa& decode_avx2() {
    static constexpr DecodeIsa isa{Vec::lanes, Vec::panel, decode<Vec>};
    return isa;
}

}  // namespace merfast
