#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace headkv {

std::vector<std::int32_t> all_positions(std::int64_t n);  // 0 .. n - 1

// As in headkv/method.h; the caller's `scratch` saves an allocation a head.
std::vector<std::int32_t> select_top_k_window(std::span<const float> values, std::int64_t n,
                                              std::int64_t window, std::int64_t rows,
                                              std::int64_t protect, std::vector<float>& scratch);

}  // namespace headkv
