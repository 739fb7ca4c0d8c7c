// Score: what was observed in one layer -> a value per (KV head, position).
#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

#include "headkv/method.h"

namespace headkv {
namespace {

// A NaN counts as no attention, so that one broken value cannot spread through the pooling.
inline float zero_if_nan(float value) { return std::isnan(value) ? 0.0F : value; }

// One value per position out of the group's query heads. `observed` [group][n], `out` [positions].
void reduce_group(std::span<const float> observed, std::int64_t n, GroupReduce reduce,
                  std::span<float> out) {
    const auto stride = static_cast<std::size_t>(n);
    const std::size_t group = observed.size() / stride;
    std::transform(observed.begin(), observed.begin() + static_cast<std::ptrdiff_t>(out.size()),
                   out.begin(), zero_if_nan);
    for (std::size_t head = 1; head < group; ++head) {
        const auto row = observed.subspan(head * stride, out.size());
        if (reduce == GroupReduce::max) {
            for (std::size_t i = 0; i < out.size(); ++i) out[i] = std::max(out[i], row[i]);
        } else {
            for (std::size_t i = 0; i < out.size(); ++i) out[i] += zero_if_nan(row[i]);
        }
    }
    if (reduce == GroupReduce::mean && group > 1) {
        for (float& value : out) value /= static_cast<float>(group);
    }
}

// Calls visit(i, i + offset) for the positions [begin, end) whose neighbour at `offset` exists.
template <class Visit>
void for_each_pair(std::int64_t begin, std::int64_t end, std::int64_t offset, std::int64_t size,
                   Visit visit) {
    end = std::min(end, size - offset);
    for (std::int64_t i = std::max(begin, -offset); i < end; ++i) {
        visit(static_cast<std::size_t>(i), static_cast<std::size_t>(i + offset));
    }
}

// Stride 1, same length. One straight loop per offset vectorises, block by block to stay in the
// nearest cache. Summing afresh at every position gives equal windows equal sums, which a running
// sum would not.
void pool_row(std::span<const float> in, std::int64_t kernel, Pool pool, std::span<float> out) {
    constexpr std::int64_t kBlock = 2048;
    constexpr float kLowest = -std::numeric_limits<float>::infinity();
    const auto size = static_cast<std::int64_t>(in.size());
    const std::int64_t half = kernel / 2;
    std::fill(out.begin(), out.end(), 0.0F);
    if (pool == Pool::max) std::fill(out.begin(), out.end(), kLowest);
    for (std::int64_t begin = 0; begin < size; begin += kBlock) {
        const std::int64_t end = std::min(begin + kBlock, size);
        for (std::int64_t offset = -half; offset <= half; ++offset) {
            if (pool == Pool::max) {
                for_each_pair(begin, end, offset, size, [&](std::size_t i, std::size_t other) {
                    out[i] = std::max(out[i], in[other]);
                });
            } else {
                for_each_pair(begin, end, offset, size,
                              [&](std::size_t i, std::size_t other) { out[i] += in[other]; });
            }
        }
    }
    if (pool == Pool::avg) {
        for (float& value : out) value /= static_cast<float>(kernel);
    }
}

}  // namespace

QueryWeights query_weights(std::int64_t count, double decay, std::int64_t alike) {
    QueryWeights weights{std::vector<float>(static_cast<std::size_t>(count))};
    double weight = 1, sum = 0;
    for (std::int64_t behind = 0; behind < count; ++behind) {
        if (behind > alike) weight *= decay;
        weights.each[static_cast<std::size_t>(count - 1 - behind)] = static_cast<float>(weight);
        sum += weight;
    }
    weights.sum = static_cast<float>(sum);
    return weights;
}

std::vector<float> score_window(std::span<const float> observed, const HeadShape& shape,
                                std::int64_t n, std::int64_t window, std::int64_t kernel, Pool pool,
                                GroupReduce reduce) {
    assert(static_cast<std::int64_t>(observed.size()) == shape.query_heads * n);
    assert(kernel % 2 == 1);
    const auto positions = static_cast<std::size_t>(std::max<std::int64_t>(n - window, 0));
    const auto heads = static_cast<std::size_t>(shape.kv_heads);
    const auto group_size = static_cast<std::size_t>(shape.group() * n);

    std::vector<float> values(heads * positions);  // [kv_heads][positions before the window]
    if (positions == 0) return values;
    std::vector<float> reduced(kernel > 1 ? positions : 0);
    for (std::size_t head = 0; head < heads; ++head) {
        const auto group = observed.subspan(head * group_size, group_size);
        const auto out = std::span(values).subspan(head * positions, positions);
        if (kernel == 1) {
            reduce_group(group, n, reduce, out);
        } else {
            reduce_group(group, n, reduce, reduced);
            pool_row(reduced, kernel, pool, out);
        }
    }
    return values;
}

}  // namespace headkv
