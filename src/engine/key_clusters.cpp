#include "engine/key_clusters.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>

namespace headkv {

namespace {

using kernels::Half;

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

constexpr std::int64_t kKeys = 256;  // at once

// Each mean over its length: which of them a key is nearest to does not depend on the key's own.
std::vector<float> directions(const std::vector<float>& means, std::int64_t dim) {
    std::vector<float> unit(means);
    for (auto row = unit.begin(); row != unit.end(); row += dim) {
        const float square = std::inner_product(row, row + dim, row, 0.0F);
        const float scale = square > 0 ? 1 / std::sqrt(square) : 0;
        std::for_each(row, row + dim, [scale](float& value) { value *= scale; });
    }
    return unit;
}

// Whether a key has changed its cluster.
bool assign(std::span<const Half> keys, std::int64_t dim, const std::vector<float>& unit,
            std::vector<std::int32_t>& cluster_of) {
    const auto clusters = std::ssize(unit) / dim, count = std::ssize(cluster_of);
    std::vector<float> scores(size(std::min(kernels::kMostQueries, clusters) * kKeys));
    std::vector<float> best(size(kKeys));
    std::vector<std::int32_t> nearest(size(kKeys));
    bool changed = false;
    for (std::int64_t first = 0; first < count; first += kKeys) {
        const auto some = std::min(kKeys, count - first);
        std::fill(best.begin(), best.end(), -std::numeric_limits<float>::infinity());
        std::fill(nearest.begin(), nearest.end(), 0);
        for (std::int64_t begin = 0; begin < clusters; begin += kernels::kMostQueries) {
            const auto part = std::min(kernels::kMostQueries, clusters - begin);
            kernels::best().dot_rows(unit.data() + begin * dim, part, keys.data() + first * dim,
                                     some, dim, scores.data(), some);
            for (std::int64_t c = 0; c < part; ++c) {
                const float* row = scores.data() + c * some;
                for (std::int64_t i = 0; i < some; ++i) {
                    const bool nearer = row[i] > best[size(i)];
                    best[size(i)] = nearer ? row[i] : best[size(i)];
                    nearest[size(i)] =
                        nearer ? static_cast<std::int32_t>(begin + c) : nearest[size(i)];
                }
            }
        }
        for (std::int64_t i = 0; i < some; ++i) {
            auto& cluster = cluster_of[size(first + i)];
            changed = changed || cluster != nearest[size(i)];
            cluster = nearest[size(i)];
        }
    }
    return changed;
}

void take_means(std::span<const Half> keys, std::int64_t dim,
                const std::vector<std::int32_t>& cluster_of, std::vector<float>& means) {
    std::vector<float> sums(means.size(), 0.0F), key(size(dim));
    std::vector<std::int64_t> counts(means.size() / size(dim), 0);
    for (std::size_t i = 0; i < cluster_of.size(); ++i) {
        const auto cluster = size(cluster_of[i]);
        kernels::best().to_float(keys.data() + static_cast<std::int64_t>(i) * dim, key.data(), dim);
        float* sum = sums.data() + cluster * size(dim);
        for (std::size_t d = 0; d < key.size(); ++d) sum[d] += key[d];
        ++counts[cluster];
    }
    for (std::size_t i = 0; i < means.size(); ++i) {
        const auto members = counts[i / size(dim)];
        if (members > 0) means[i] = sums[i] / static_cast<float>(members);
    }
}

}  // namespace

ClusteredKeys cluster_keys(std::span<const Half> keys, std::int64_t dim, std::int64_t clusters,
                           std::int64_t iterations) {
    const auto count = std::ssize(keys) / dim;
    clusters = std::min(clusters, count);
    ClusteredKeys made;
    made.means.resize(size(clusters * dim));
    made.cluster_of.assign(size(count), -1);
    for (std::int64_t c = 0; c < clusters; ++c) {
        const auto row = (2 * c + 1) * count / (2 * clusters);
        kernels::best().to_float(keys.data() + row * dim, made.means.data() + c * dim, dim);
    }
    for (std::int64_t i = 0; i < iterations; ++i) {
        if (!assign(keys, dim, directions(made.means, dim), made.cluster_of)) break;
        take_means(keys, dim, made.cluster_of, made.means);
    }
    return made;
}

void KeyClusters::add(std::span<const Half> keys, std::int64_t dim) {
    const auto count = std::ssize(keys) / dim;
    if (count == 0) return;
    const auto finer = cluster_of_.empty() ? 1 : 2;
    const auto made = cluster_keys(keys, dim, (finer * count + needs_.size - 1) / needs_.size);
    const auto before = static_cast<std::int32_t>(std::ssize(means_) / dim);
    means_.insert(means_.end(), made.means.begin(), made.means.end());
    for (const auto cluster : made.cluster_of) cluster_of_.push_back(before + cluster);
}

std::vector<float> KeyClusters::products(std::span<const float> queries, std::int64_t dim) const {
    assert(std::ssize(queries) % dim == 0);
    std::vector<float> query(size(dim), 0.0F);  // products are linear: one of the sum is enough
    for (std::size_t i = 0; i < queries.size(); ++i) query[i % size(dim)] += queries[i];
    std::vector<float> of_cluster;
    for (auto mean = means_.begin(); mean != means_.end(); mean += dim) {
        of_cluster.push_back(std::inner_product(query.begin(), query.end(), mean, 0.0F));
    }
    std::vector<float> values(size(rows()), 0.0F);
    std::transform(cluster_of_.begin(), cluster_of_.end(), values.begin() + needs_.first,
                   [&](std::int32_t cluster) { return of_cluster[size(cluster)]; });
    return values;
}

}  // namespace headkv
