// EMS (2412.08521): scores that see the whole prompt and its end, and dropped rows that join kept
// ones.
#include <algorithm>
#include <cassert>
#include <charconv>
#include <cmath>
#include <system_error>
#include <tuple>

#include "headkv/method.h"

namespace headkv {
namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

float zero_if_nan(float value) { return std::isnan(value) ? 0.0F : value; }

// Rows [rows.size()][dim] of length 1; those without a direction are 0 and like nothing.
std::vector<float> directions(std::span<const float> keys, std::int64_t dim,
                              std::span<const std::int32_t> rows) {
    std::vector<float> result(rows.size() * size(dim));
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto* key = keys.data() + rows[i] * dim;
        double squares = 0;
        for (std::int64_t d = 0; d < dim; ++d) {
            squares += static_cast<double>(key[d]) * static_cast<double>(key[d]);
        }
        if (!(squares > 0) || !std::isfinite(squares)) continue;
        const auto scale = static_cast<float>(1 / std::sqrt(squares));
        std::transform(key, key + dim, result.begin() + static_cast<std::ptrdiff_t>(i) * dim,
                       [scale](float value) { return value * scale; });
    }
    return result;
}

}  // namespace

std::vector<float> align_attention(const LayerView& view, const HeadShape& shape, std::int64_t n,
                                   std::int64_t window) {
    assert(std::ssize(view.observed) == shape.query_heads * n &&
           view.recent.size() == view.observed.size());
    std::vector<float> aligned(view.observed.size());
    const auto before = size(std::max<std::int64_t>(0, n - window));
    for (std::int64_t head = 0; head < shape.query_heads; ++head) {
        const auto all = view.observed.subspan(size(head * n), size(n));
        const auto last = view.recent.subspan(size(head * n), size(n));
        const auto out = std::span(aligned).subspan(size(head * n), size(n));
        double sum_all = 0, sum_last = 0;
        for (std::size_t i = 0; i < out.size(); ++i) {
            // The mean over n queries, of which n - i can see row i.
            out[i] =
                zero_if_nan(all[i]) * static_cast<float>(n) / static_cast<float>(out.size() - i);
            if (i >= before) continue;
            sum_all += static_cast<double>(out[i]);
            sum_last += static_cast<double>(zero_if_nan(last[i]));
        }
        const auto scale = sum_last > 0 ? static_cast<float>(sum_all / sum_last) : 0.0F;
        for (std::size_t i = 0; i < out.size(); ++i) out[i] += scale * zero_if_nan(last[i]);
    }
    return aligned;
}

std::vector<MergedRow> merge_into_nearest(std::span<const float> keys, std::int64_t n,
                                          std::span<const std::int32_t> kept,
                                          std::span<const std::int32_t> candidates,
                                          double similarity) {
    const auto dim = static_cast<std::int64_t>(keys.size()) / n;
    const auto centres = directions(keys, dim, kept);
    const auto others = directions(keys, dim, candidates);
    std::vector<MergedRow> merged;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
        const float* key = others.data() + i * size(dim);
        auto best = static_cast<float>(similarity);
        std::size_t nearest = kept.size();
        for (std::size_t j = 0; j < kept.size(); ++j) {
            const float* centre = centres.data() + j * size(dim);
            float cosine = 0;
            for (std::int64_t d = 0; d < dim; ++d) cosine += key[d] * centre[d];
            if (!(cosine > best)) continue;
            best = cosine;
            nearest = j;
        }
        if (nearest < kept.size()) merged.push_back({candidates[i], kept[nearest]});
    }
    std::sort(merged.begin(), merged.end(), [](const MergedRow& a, const MergedRow& b) {
        return std::tie(a.into, a.from) < std::tie(b.into, b.from);
    });
    return merged;
}

Result<MergeRows> parse_merge_rows(std::string_view text) {
    const bool percent = text.ends_with('%');
    const std::string_view digits = text.substr(0, text.size() - (percent ? 1 : 0));
    double value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    const bool share = percent || digits.find('.') != std::string_view::npos;
    constexpr double kMost = 1e9;
    if (error != std::errc() || end != digits.data() + digits.size() || !(value >= 0) ||
        !(value <= kMost)) {
        return bad_input("merge is {}: give a number of rows (64) or a share of those kept (50%)",
                         text);
    }
    return MergeRows{percent ? value / 100 : value, share};
}

std::string name_of(const MergeRows& rows) {
    return rows.share ? fmt::format("{:g}%", 100 * rows.amount) : fmt::format("{:g}", rows.amount);
}

}  // namespace headkv
