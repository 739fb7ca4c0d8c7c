#include "eval/statistics.h"

#include <algorithm>
#include <map>
#include <vector>

#include "calibrate/random.h"

namespace headkv {

std::int64_t ClusterNumbers::of(const std::string& name) {
    if (name.empty()) return next_++;
    const auto [found, added] = named_.try_emplace(name, next_);
    if (added) ++next_;
    return found->second;
}

Estimate clustered_estimate(std::span<const ProbeValue> observations, std::uint64_t seed) {
    constexpr std::size_t draws = 2000;
    struct Sum {
        double value = 0, weight = 0;
    };
    std::map<std::int64_t, Sum> by_cluster;
    Sum total;
    for (const ProbeValue& o : observations) {
        Sum& sum = by_cluster[o.cluster];
        sum.value += o.value;
        sum.weight += o.weight;
        total.value += o.value;
        total.weight += o.weight;
    }
    Estimate estimate;
    if (total.weight <= 0) return estimate;
    estimate.value = total.value / total.weight;

    std::vector<Sum> clusters;
    clusters.reserve(by_cluster.size());
    for (const auto& [cluster, sum] : by_cluster) clusters.push_back(sum);
    Random random(seed);
    std::vector<double> ratios;
    for (std::size_t draw = 0; draw < draws; ++draw) {
        Sum sum;
        for (std::size_t i = 0; i < clusters.size(); ++i) {
            const Sum& drawn = clusters[random.below(clusters.size())];
            sum.value += drawn.value;
            sum.weight += drawn.weight;
        }
        if (sum.weight > 0) ratios.push_back(sum.value / sum.weight);
    }
    std::sort(ratios.begin(), ratios.end());
    const auto at = [&](double share) {
        return ratios[static_cast<std::size_t>(share * static_cast<double>(ratios.size() - 1))];
    };
    estimate.low = at(0.025);
    estimate.high = at(0.975);
    return estimate;
}

}  // namespace headkv
