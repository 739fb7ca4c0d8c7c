// Finding the k best values without sorting them.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace headkv {

// What to keep: every value above `value`, and the first `ties` of those equal to it. Selecting by
// a threshold leaves positions in order and breaks ties by position for free.
struct Threshold {
    float value = std::numeric_limits<float>::infinity();
    std::int64_t ties = 0;
};

// A NaN must never win a row: it ranks below everything.
inline float lowest_if_nan(float value) {
    return std::isnan(value) ? -std::numeric_limits<float>::infinity() : value;
}

// The threshold that keeps exactly min(k, values.size()) of `values`. `best` is a buffer to reuse;
// afterwards it holds the best values in no order: k of them, or all that rank above the lowest.
Threshold top_k_threshold(std::span<const float> values, std::int64_t k, std::vector<float>& best);

}  // namespace headkv
