#include "isas.h"

#include <stdexcept>

namespace merfast {
namespace {

std::vector<Isa> usable(bool bf16) {
    std::vector<Isa> found;
#ifdef MERFAST_X86
    // Asks the processor and the operating system (XCR0: are the wide registers saved).
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f");
    if (bf16) {
        const bool words = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
        if (avx512 && words && __builtin_cpu_supports("avx512bf16")) found.push_back(Isa::avx512bf16);
        return found;
    }
    if (avx512) found.push_back(Isa::avx512);
    if (avx2) found.push_back(Isa::avx2);
#endif
    if (!bf16) found.push_back(Isa::generic);
    return found;
}

}  // namespace

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512bf16:
            return "avx512bf16";
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        default:
            return "generic";
    }
}

std::vector<std::string> isas(bool bf16) {
    std::vector<std::string> names;
    for (const Isa isa : usable(bf16)) names.emplace_back(isa_name(isa));
    return names;
}

Isa find_isa(const std::string& name, bool bf16) {
    std::string names;
    for (const Isa isa : usable(bf16)) {
        if (name == "auto" || name == isa_name(isa)) return isa;
        names += std::string(", ") + isa_name(isa);
    }
    throw std::invalid_argument("isa: got '" + name + "', expected auto" + names);
}

}  // namespace merfast
