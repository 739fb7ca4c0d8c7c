// FastGen (2310.01801): rows in classes, the cheapest first, and what each class leaves out.
#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>

#include "headkv/method.h"
#include "method/select.h"
#include "method/top_k.h"

namespace headkv {
namespace {

constexpr std::size_t kClasses = kAnyRow + 1;

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

// Puts the `count` best of the rows that have no class yet into class 2. `attention` [n].
void add_frequent(std::span<const float> attention, std::int64_t count,
                  std::vector<std::uint8_t>& classes) {
    constexpr float kLowest = -std::numeric_limits<float>::infinity();
    std::vector<float> open(attention.begin(), attention.end()), scratch;
    for (std::size_t i = 0; i < open.size(); ++i) {
        open[i] = classes[i] == kAnyRow ? lowest_if_nan(open[i]) : kLowest;
    }
    auto [bar, ties] = top_k_threshold(open, count, scratch);
    for (std::size_t i = 0; i < open.size(); ++i) {
        if (classes[i] != kAnyRow || open[i] < bar || (open[i] == bar && --ties < 0)) continue;
        classes[i] = 2;
    }
}

}  // namespace

std::vector<std::uint8_t> held_classes(std::span<const std::int32_t> positions,
                                       std::span<const TokenKind> kinds,
                                       std::span<const float> attention, std::int64_t protect,
                                       std::int64_t frequent, std::int64_t local) {
    assert(positions.size() == attention.size());
    std::vector<std::uint8_t> classes(positions.size(), kAnyRow);
    for (std::size_t i = 0; i < positions.size(); ++i) {
        const auto kind = kinds[size(positions[i])];
        const bool always = positions[i] < protect || i + 1 == positions.size();
        if (always || kind == TokenKind::special) {
            classes[i] = 0;
        } else if (kind == TokenKind::punctuation) {
            classes[i] = 1;
        }
    }
    add_frequent(attention, frequent, classes);
    const auto tokens = positions.empty() ? 0 : std::int64_t{positions.back()} + 1;
    for (std::size_t i = 0; i < positions.size(); ++i) {
        if (positions[i] >= tokens - local) classes[i] = std::min<std::uint8_t>(classes[i], 3);
    }
    return classes;
}

std::vector<std::uint8_t> token_classes(const LayerView& view, const HeadShape& shape,
                                        std::int64_t n, std::int64_t protect, std::int64_t frequent,
                                        std::int64_t local, GroupReduce reduce) {
    assert(std::ssize(view.kinds) == n && std::ssize(view.observed) == shape.query_heads * n);
    const auto positions = all_positions(n);
    const auto attention = score_window(view.observed, shape, n, 0, 1, Pool::avg, reduce);
    std::vector<std::uint8_t> all;
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
        const auto own = std::span(attention).subspan(size(head * n), size(n));
        const auto classes = held_classes(positions, view.kinds, own, protect, frequent, local);
        all.insert(all.end(), classes.begin(), classes.end());
    }
    return all;
}

std::vector<float> score_token_classes(const LayerView& view, const HeadShape& shape,
                                       std::int64_t n, std::int64_t protect, std::int64_t frequent,
                                       std::int64_t local, GroupReduce reduce) {
    const auto all_classes = token_classes(view, shape, n, protect, frequent, local, reduce);
    std::vector<float> values(size(shape.kv_heads * n));
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
        const auto classes = std::span(all_classes).subspan(size(head * n), size(n));
        // What the classes below each one leave out, in the query head that they serve worst.
        std::array<double, kClasses> missing{};
        for (std::int64_t query = head * shape.group(); query < (head + 1) * shape.group();
             ++query) {
            std::array<double, kClasses> mass{};
            double all = 0;
            for (std::int64_t i = 0; i < n; ++i) {
                const float weight = view.observed[size(query * n + i)];
                if (!(weight > 0)) continue;  // a NaN is no attention
                mass[classes[size(i)]] += static_cast<double>(weight);
                all += static_cast<double>(weight);
            }
            double above = all;
            for (std::size_t c = 0; c < kClasses; ++c) {
                missing[c] = std::max(missing[c], all > 0 ? above / all : 1.0);
                above = std::max(0.0, above - mass[c]);
            }
        }
        for (std::int64_t i = 0; i < n; ++i) {
            values[size(head * n + i)] = static_cast<float>(missing[classes[size(i)]]);
        }
    }
    return values;
}

}  // namespace headkv
