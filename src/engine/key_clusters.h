// Clusters of one KV head's keys (ClusterKV, 2412.03213): rows that point the same way stand
// together for one product with a query.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "headkv/method.h"
#include "kernels/attention.h"

namespace headkv {

// k-means by cosine, at most `iterations` times, of keys [count][dim]: from `clusters` of them,
// evenly spaced, so that the same keys always give the same clusters. A key goes to the nearest
// mean (ties: the lower cluster), a mean is that of its keys as they are, not of their directions.
// Clusters that lose all keys keep their mean.
struct ClusteredKeys {
    std::vector<float> means;              // [clusters][dim]
    std::vector<std::int32_t> cluster_of;  // [count]
};
ClusteredKeys cluster_keys(std::span<const kernels::Half> keys, std::int64_t dim,
                           std::int64_t clusters, std::int64_t iterations = 20);

// Of the rows of a sequence, in order of their positions. Those before ClusterNeeds::first are in
// no cluster; the others are, up to rows(). Rows that come later become clusters of their own.
class KeyClusters {
public:
    explicit KeyClusters(const ClusterNeeds& needs) : needs_(needs) {}

    std::int64_t rows() const {
        return needs_.first + static_cast<std::int64_t>(cluster_of_.size());
    }

    // Rows [rows(), rows() + count) become clusters; keys f16 after RoPE, not rotated,
    // [count][dim]. So many as ClusterNeeds::size says; of rows that come after the first ones
    // twice as many, as in the paper's code (8 of 320 rows).
    void add(std::span<const kernels::Half> keys, std::int64_t dim);

    // The value of each row, [rows()]: the sum over the queries [group][dim] of their products with
    // the mean of the row's cluster; 0 for the first rows.
    std::vector<float> products(std::span<const float> queries, std::int64_t dim) const;

private:
    ClusterNeeds needs_;
    std::vector<float> means_;              // [clusters][dim]
    std::vector<std::int32_t> cluster_of_;  // [rows() - first]
};

}  // namespace headkv
