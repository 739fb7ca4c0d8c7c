// What an evaluation compares.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "headkv/method.h"

namespace headkv {

struct ConfigUnderTest {
    MethodConfig method;
    std::string name;  // the method as written, with its own options where it has some
    double rows = 0;   // as asked for; 0 for full
};

// The full cache, which everything is compared with, then `configs` in their order.
std::vector<ConfigUnderTest> with_full(std::span<const ConfigUnderTest> configs);
// Their methods alone, as a prefill takes them.
std::vector<MethodConfig> methods_of(std::span<const ConfigUnderTest> configs);

}  // namespace headkv
