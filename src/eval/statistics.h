// Intervals of shares and means over probes that come in clusters.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace headkv {

// One probe: which cluster (needle) it belongs to, and what it adds to a ratio of sums. A mean has
// weight 1 everywhere; "of the answers that full gets right" has weight 0 where full is wrong.
struct ProbeValue {
    std::int64_t cluster = 0;
    double value = 0;
    double weight = 1;
};

// Numbers of clusters that have names; an example without one is a cluster by itself.
class ClusterNumbers {
public:
    std::int64_t of(const std::string& name);

private:
    std::map<std::string, std::int64_t> named_;
    std::int64_t next_ = 0;
};

struct Estimate {
    double value = 0;          // sum of values / sum of weights; 0 if there is no weight
    double low = 0, high = 0;  // 95 % interval
};

// Bootstrap over whole clusters (probes of one needle succeed and fail together, so drawing single
// probes would give too narrow an interval), 2000 draws, deterministic for a seed.
Estimate clustered_estimate(std::span<const ProbeValue> observations, std::uint64_t seed);

}  // namespace headkv
