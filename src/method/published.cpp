// The allocation of the published HeadKV code, to compare with it bit for bit.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

#include "headkv/method.h"

namespace headkv {
namespace {

// `a // b` of two floats as Python computes it, for a >= 0 and b > 0: not floor(a / b), whose
// division may round up to the next whole number.
double floor_divide(double a, double b) {
    const double quotient = (a - std::fmod(a, b)) / b;  // whole, but for rounding
    const double below = std::floor(quotient);
    return quotient - below > 0.5 ? below + 1 : below;
}

void normalize_sum(std::vector<double>& values) {
    const double sum = std::accumulate(values.begin(), values.end(), 0.0);
    for (double& value : values) {
        value = sum > 0 ? value / sum : 1.0 / static_cast<double>(values.size());
    }
}

}  // namespace

std::vector<std::int64_t> allocate_as_published(const HeadScores& scores, std::int64_t kv_size,
                                                std::int64_t window, double beta) {
    assert(kv_size >= window && beta > 0);
    auto shares = scores.mean;
    normalize_sum(shares);
    normalize_sum(shares);  // theirs does so twice, and the last bit can depend on it

    const auto base = static_cast<double>(kv_size - window);
    const double quotient = floor_divide(base, beta);
    const double pool = quotient * static_cast<double>(shares.size());
    const double least = base - quotient;
    std::vector<std::int64_t> capacity(shares.size());
    std::transform(shares.begin(), shares.end(), capacity.begin(), [&](double share) {
        // nearbyint rounds halves to even in the default mode, as their round() does.
        return static_cast<std::int64_t>(std::nearbyint(share * pool + least));
    });
    return capacity;
}

}  // namespace headkv
