#include "eval/config.h"

#include <algorithm>
#include <iterator>

#include "engine/sequences.h"

namespace headkv {

std::vector<ConfigUnderTest> with_full(std::span<const ConfigUnderTest> configs) {
    std::vector<ConfigUnderTest> all = {{full_cache(), "full", 0}};
    all.insert(all.end(), configs.begin(), configs.end());
    return all;
}

std::vector<MethodConfig> methods_of(std::span<const ConfigUnderTest> configs) {
    std::vector<MethodConfig> methods;
    methods.reserve(configs.size());
    std::transform(configs.begin(), configs.end(), std::back_inserter(methods),
                   [](const ConfigUnderTest& config) { return config.method; });
    return methods;
}

}  // namespace headkv
