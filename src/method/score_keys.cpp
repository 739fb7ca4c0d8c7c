// Scores that look at no attention, and what is done to the values of a layer before heads select.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "headkv/method.h"

namespace headkv {
namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

double length(std::span<const float> key) {
    double sum = 0;
    for (const float x : key) sum += static_cast<double>(x) * static_cast<double>(x);
    return std::sqrt(sum);
}

// A fixed mixing of 64 bits (the finaliser of splitmix64, Steele et al. 2014).
std::uint64_t mixed(std::uint64_t x) {
    x += 0x9E3779B97F4A7C15ULL;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

// Calls each(key, value) for the keys of a head and their places in `values`.
template <class Each>
void for_each_key(std::span<const float> keys, std::span<float> values, Each each) {
    const std::size_t dim = keys.size() / values.size();
    for (std::size_t i = 0; i < values.size(); ++i) each(keys.subspan(i * dim, dim), values[i]);
}

}  // namespace

std::vector<float> score_key_norm(std::span<const float> keys, std::int64_t heads, std::int64_t n) {
    std::vector<float> values(size(heads * n));
    for_each_key(keys, values, [](std::span<const float> key, float& value) {
        value = -static_cast<float>(length(key));
    });
    return values;
}

std::vector<float> score_key_difference(std::span<const float> keys, std::int64_t heads,
                                        std::int64_t n) {
    std::vector<float> values(size(heads * n));
    const std::size_t per_head = keys.size() / size(heads);
    for (std::int64_t head = 0; head < heads; ++head) {
        const auto rows = keys.subspan(size(head) * per_head, per_head);
        const auto out = std::span(values).subspan(size(head * n), size(n));
        std::vector<double> mean(per_head / size(n));
        for_each_key(rows, out, [&](std::span<const float> key, float& /*value*/) {
            const double norm = length(key);
            if (!(norm > 0)) return;
            for (std::size_t i = 0; i < key.size(); ++i) {
                mean[i] += static_cast<double>(key[i]) / norm;
            }
        });
        double mean_norm = 0;
        for (const double x : mean) mean_norm += x * x;
        mean_norm = std::sqrt(mean_norm);
        for_each_key(rows, out, [&](std::span<const float> key, float& value) {
            double product = 0;
            for (std::size_t i = 0; i < key.size(); ++i) {
                product += static_cast<double>(key[i]) * mean[i];
            }
            const double norm = length(key) * mean_norm;
            value = norm > 0 ? -static_cast<float>(product / norm) : 0.0F;
        });
    }
    return values;
}

std::vector<float> score_random(std::int64_t seed, std::int64_t layer, std::int64_t heads,
                                std::int64_t n) {
    std::vector<float> values(size(heads * n));
    for (std::int64_t head = 0; head < heads; ++head) {
        const auto stream = mixed(
            mixed(mixed(static_cast<std::uint64_t>(seed)) ^ static_cast<std::uint64_t>(layer)) ^
            static_cast<std::uint64_t>(head));
        for (std::int64_t i = 0; i < n; ++i) {
            const auto bits = mixed(stream ^ static_cast<std::uint64_t>(i)) >> 40;  // 24 of them
            values[size(head * n + i)] = static_cast<float>(bits) * 0x1p-24F;
        }
    }
    return values;
}

void share_values(std::span<float> values, std::int64_t heads) {
    const std::size_t n = values.size() / size(heads);
    for (std::size_t i = 0; i < n; ++i) {
        double sum = 0;
        for (std::size_t at = i; at < values.size(); at += n) sum += values[at];
        const auto mean = static_cast<float>(sum / static_cast<double>(heads));
        for (std::size_t at = i; at < values.size(); at += n) values[at] = mean;
    }
}

void rank_by_prefix_mass(std::span<float> values, std::int64_t heads) {
    const std::size_t n = values.size() / size(heads);
    std::vector<std::size_t> order(n);
    for (std::size_t begin = 0; begin < values.size(); begin += n) {
        const auto row = values.subspan(begin, n);
        for (float& value : row) value = value > 0 ? value : 0;  // a NaN holds nothing
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::stable_sort(order.begin(), order.end(),
                         [&](std::size_t a, std::size_t b) { return row[a] > row[b]; });
        const double all = std::accumulate(row.begin(), row.end(), 0.0);
        double before = 0;
        for (const std::size_t i : order) {
            const double mass = row[i];
            row[i] = all > 0 ? static_cast<float>(1 - before / all) : 0.0F;
            before += mass;
        }
    }
}

namespace {

void set_to_mean(std::span<float> part) {
    double sum = 0;
    for (const float value : part) sum += std::isnan(value) ? 0.0 : value;
    std::fill(part.begin(), part.end(), static_cast<float>(sum / static_cast<double>(part.size())));
}

}  // namespace

void join_chunks(std::span<float> values, std::int64_t heads, std::int64_t chunk) {
    assert(chunk >= 1);
    if (chunk == 1) return;
    const auto n = static_cast<std::int64_t>(values.size()) / heads;
    for (std::int64_t head = 0; head < heads; ++head) {
        for (std::int64_t begin = 0; begin < n; begin += chunk) {
            set_to_mean(values.subspan(size(head * n + begin), size(std::min(chunk, n - begin))));
        }
    }
}

void join_sentences(std::span<float> values, std::int64_t heads,
                    std::span<const std::int32_t> starts) {
    const auto n = static_cast<std::int64_t>(values.size()) / heads;
    for (std::int64_t head = 0; head < heads; ++head) {
        for (std::size_t i = 0; i < starts.size() && starts[i] < n; ++i) {
            const auto end = i + 1 < starts.size() ? std::min<std::int64_t>(starts[i + 1], n) : n;
            set_to_mean(values.subspan(size(head * n + starts[i]), size(end - starts[i])));
        }
    }
}

}  // namespace headkv
