// Longest common subsequences, which several metrics count.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace headkv {

template <class Sequence>
std::size_t common_subsequence(const Sequence& a, const Sequence& b) {
    std::vector<std::size_t> row(b.size() + 1);
    for (const auto& item : a) {
        std::size_t diagonal = 0;
        for (std::size_t j = 0; j < b.size(); ++j) {
            const std::size_t above = row[j + 1];
            row[j + 1] = item == b[j] ? diagonal + 1 : std::max(above, row[j]);
            diagonal = above;
        }
    }
    return row.back();
}

}  // namespace headkv
