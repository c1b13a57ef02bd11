// Which instruction sets this build has and this machine can run.
#pragma once

#include <string>
#include <vector>

#include "isa.h"

namespace merfast {

// Their names, best first.
std::vector<std::string> isas();

// The one of that name, or the best for "auto"; throws std::invalid_argument when it is not among isas().
Isa find_isa(const std::string& name);

const char* isa_name(Isa isa);

}  // namespace merfast
