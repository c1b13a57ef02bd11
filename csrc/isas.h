// Which instruction sets this build has and this machine can run.
#pragma once

#include <string>
#include <vector>

#include "isa.h"

namespace merfast {

// Their names, best first: for fp32, or for bf16, which not every machine has one for.
std::vector<std::string> isas(bool bf16 = false);

// The one of that name, or the best for "auto"; throws std::invalid_argument when it is not among isas(bf16).
Isa find_isa(const std::string& name, bool bf16 = false);

const char* isa_name(Isa isa);

}  // namespace merfast
