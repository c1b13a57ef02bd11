#include "isas.h"

#include <stdexcept>

namespace merfast {
namespace {

std::vector<Isa> usable() {
    std::vector<Isa> found;
#ifdef MERFAST_X86
    // Asks the processor and the operating system (XCR0: are the wide registers saved).
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f")) found.push_back(Isa::avx512);
    if (avx2) found.push_back(Isa::avx2);
#endif
    found.push_back(Isa::generic);
    return found;
}

}  // namespace

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        default:
            return "generic";
    }
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Isa isa : usable()) names.emplace_back(isa_name(isa));
    return names;
}

Isa find_isa(const std::string& name) {
    static const std::vector<Isa> all = usable();
    std::string names;
    for (const Isa isa : all) {
        if (name == "auto" || name == isa_name(isa)) return isa;
        names += std::string(names.empty() ? "" : ", ") + isa_name(isa);
    }
    throw std::invalid_argument("isa: got '" + name + "', expected auto, " + names);
}

}  // namespace merfast
