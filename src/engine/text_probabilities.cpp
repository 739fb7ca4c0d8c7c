#include "engine/text_probabilities.h"

#include <algorithm>
#include <cmath>

namespace headkv {

Result<std::vector<float>> text_log_probabilities(
    std::span<const Token> text, std::int64_t vocabulary,
    const std::function<Result<std::vector<float>>(std::int64_t first, std::int64_t count)>&
        logits) {
    const auto count = static_cast<std::int64_t>(text.size()) - 1;
    std::vector<float> result;
    constexpr std::int64_t kAtOnce = 32;  // bounds the logits held: 32 x 152k x 4 bytes = 19 MB
    for (std::int64_t first = 0; first < count; first += kAtOnce) {
        const auto some = std::min(kAtOnce, count - first);
        const auto rows = logits(first, some);
        if (!rows) return tl::unexpected(rows.error());
        for (std::int64_t i = 0; i < some; ++i) {
            const std::span<const float> row(rows->data() + i * vocabulary,
                                             static_cast<std::size_t>(vocabulary));
            const double top = *std::max_element(row.begin(), row.end());
            double sum = 0;
            for (const float value : row) sum += std::exp(static_cast<double>(value) - top);
            const auto next = text[static_cast<std::size_t>(first + i + 1)];
            const auto target = row[static_cast<std::size_t>(next)];
            result.push_back(static_cast<float>(target - top - std::log(sum)));
        }
    }
    return result;
}

}  // namespace headkv
