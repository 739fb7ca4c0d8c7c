// Expected attention (2510.00636): what queries yet to come will make of each row, if they are
// spread as those of the prompt were. For a normal distribution of queries the mean of exp(q.k) has
// a closed form, so no attention is looked at.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

#include "headkv/method.h"

namespace headkv {
namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

// k.m / sqrt(d) + k.Ck / 2d: the logarithm of that mean. `turned` is a buffer [dim].
double log_of_mean(std::span<const float> key, std::span<const float> mean,
                   std::span<const float> covariance, std::span<float> turned) {
    const std::size_t dim = key.size();
    std::fill(turned.begin(), turned.end(), 0.0F);
    for (std::size_t i = 0; i < dim; ++i) {
        const float* row = covariance.data() + i * dim;
        for (std::size_t j = 0; j < dim; ++j) turned[j] += key[i] * row[j];
    }
    double linear = 0, square = 0;
    for (std::size_t i = 0; i < dim; ++i) {
        linear += static_cast<double>(key[i]) * static_cast<double>(mean[i]);
        square += static_cast<double>(key[i]) * static_cast<double>(turned[i]);
    }
    const auto d = static_cast<double>(dim);
    return linear / std::sqrt(d) + square / (2 * d);
}

// In place; a logarithm that is no number gets nothing.
void softmax(std::span<double> logarithms) {
    double top = -std::numeric_limits<double>::infinity();
    for (const double x : logarithms) top = x > top ? x : top;
    double sum = 0;
    for (double& x : logarithms) {
        x = std::isfinite(top) && !std::isnan(x) ? std::exp(x - top) : 0;
        sum += x;
    }
    for (double& x : logarithms) x = sum > 0 ? x / sum : 0;
}

double length(std::span<const float> row) {
    double sum = 0;
    for (const float x : row) sum += static_cast<double>(x) * static_cast<double>(x);
    return std::sqrt(sum);
}

}  // namespace

std::vector<float> score_expected_attention(const LayerView& view, const HeadShape& shape,
                                            std::int64_t n, double epsilon) {
    const std::size_t dim = view.keys.size() / size(shape.kv_heads * n);
    const std::size_t dim_v = view.values.size() / size(shape.kv_heads * n);
    assert(view.query_mean.size() == size(shape.query_heads) * dim);
    assert(view.query_covariance.size() == size(shape.query_heads) * dim * dim);
    const std::int64_t first = std::min(n, kSinkQueries);
    std::vector<float> values(size(shape.kv_heads * n), 0.0F);
    std::vector<float> turned(dim);
    std::vector<double> expected(size(n - first)), mean(expected.size());
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
        const auto begin = size(head * n + first);
        std::fill(mean.begin(), mean.end(), 0.0);
        for (std::int64_t member = 0; member < shape.group(); ++member) {
            const auto query = size(head * shape.group() + member);
            for (std::size_t i = 0; i < expected.size(); ++i) {
                expected[i] = log_of_mean(
                    view.keys.subspan((begin + i) * dim, dim),
                    view.query_mean.subspan(query * dim, dim),
                    view.query_covariance.subspan(query * dim * dim, dim * dim), turned);
            }
            softmax(expected);
            for (std::size_t i = 0; i < expected.size(); ++i) mean[i] += expected[i];
        }
        for (std::size_t i = 0; i < mean.size(); ++i) {
            const double attention = mean[i] / static_cast<double>(shape.group()) + epsilon;
            values[begin + i] = static_cast<float>(
                attention * length(view.values.subspan((begin + i) * dim_v, dim_v)));
        }
    }
    return values;
}

}  // namespace headkv
