// FastGen (2310.01801): rows in classes, the cheapest first, and what each class leaves out.
#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>

#include "headkv/method.h"
#include "method/top_k.h"

namespace headkv {
namespace {

constexpr std::size_t kClasses = 5;

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

// Classes of the rows that do not depend on attention; others are the last one.
std::vector<std::uint8_t> classes_by_kind(std::span<const TokenKind> kinds, std::int64_t n,
                                          std::int64_t protect) {
    std::vector<std::uint8_t> classes(size(n), kClasses - 1);
    for (std::int64_t i = 0; i < n; ++i) {
        const bool always = i < protect || i + 1 == n;
        if (always || kinds[size(i)] == TokenKind::special) {
            classes[size(i)] = 0;
        } else if (kinds[size(i)] == TokenKind::punctuation) {
            classes[size(i)] = 1;
        }
    }
    return classes;
}

// Puts the `count` best of the rows that have no class yet into class 2. `attention` [n].
void add_frequent(std::span<const float> attention, std::int64_t count,
                  std::vector<std::uint8_t>& classes) {
    constexpr float kLowest = -std::numeric_limits<float>::infinity();
    std::vector<float> open(attention.begin(), attention.end()), scratch;
    for (std::size_t i = 0; i < open.size(); ++i) {
        open[i] = classes[i] == kClasses - 1 ? lowest_if_nan(open[i]) : kLowest;
    }
    auto [bar, ties] = top_k_threshold(open, count, scratch);
    for (std::size_t i = 0; i < open.size(); ++i) {
        if (classes[i] != kClasses - 1 || open[i] < bar || (open[i] == bar && --ties < 0)) continue;
        classes[i] = 2;
    }
}

}  // namespace

std::vector<float> score_token_classes(const LayerView& view, const HeadShape& shape,
                                       std::int64_t n, std::int64_t protect, std::int64_t frequent,
                                       std::int64_t local, GroupReduce reduce) {
    assert(std::ssize(view.kinds) == n && std::ssize(view.observed) == shape.query_heads * n);
    const auto by_kind = classes_by_kind(view.kinds, n, protect);
    const auto attention = score_window(view.observed, shape, n, 0, 1, Pool::avg, reduce);
    std::vector<float> values(size(shape.kv_heads * n));
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
        auto classes = by_kind;
        add_frequent(std::span(attention).subspan(size(head * n), size(n)), frequent, classes);
        for (auto i = std::max<std::int64_t>(0, n - local); i < n; ++i) {
            classes[size(i)] = std::min<std::uint8_t>(classes[size(i)], 3);
        }
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
