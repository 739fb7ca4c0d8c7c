// CriticalKV (2502.03805): what a row adds to the layer's output is its attention times its value
// as the output projection sees it, so part of the rows is chosen by both.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

#include "headkv/method.h"
#include "method/top_k.h"

namespace headkv {

void rank_by_output(std::span<float> values, std::span<const float> norms, const HeadShape& shape,
                    std::int64_t n, std::int64_t protect,
                    std::span<const std::int64_t> competing_rows) {
    constexpr float kEpsilon = 1e-4F;  // the paper's
    const auto heads = static_cast<std::size_t>(shape.kv_heads);
    const auto group = static_cast<std::size_t>(shape.group());
    const auto tokens = static_cast<std::size_t>(n);
    const std::size_t positions = values.size() / heads;
    const std::size_t first = std::min(static_cast<std::size_t>(protect), positions);
    assert(norms.size() == heads * group * tokens && competing_rows.size() == heads);
    std::vector<float> scratch;
    for (std::size_t head = 0; head < heads; ++head) {
        const auto rivals = values.subspan(head * positions + first, positions - first);
        auto [bar, ties] = top_k_threshold(rivals, competing_rows[head] / 2, scratch);
        for (std::size_t i = 0; i < rivals.size(); ++i) {
            const float value = lowest_if_nan(rivals[i]);
            if (value > bar || (value == bar && --ties >= 0)) {
                rivals[i] = std::numeric_limits<float>::infinity();
                continue;
            }
            double norm = 0;
            for (std::size_t member = 0; member < group; ++member) {
                const float one = norms[(head * group + member) * tokens + first + i];
                norm += std::isnan(one) ? 0.0 : static_cast<double>(one);
            }
            rivals[i] = (value + kEpsilon) * static_cast<float>(norm / static_cast<double>(group));
        }
    }
}

}  // namespace headkv
