#include "method/layout.h"

#include <algorithm>
#include <cassert>
#include <charconv>
#include <limits>
#include <numeric>
#include <set>

namespace headkv {
namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

// Heads of a layer, those that want most first; ties by index.
std::vector<std::int32_t> by_rows(std::span<const std::int64_t> rows) {
    std::vector<std::int32_t> order(rows.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int32_t a, std::int32_t b) { return rows[size(a)] > rows[size(b)]; });
    return order;
}

// Two capacities in blocks: the `many` heads that want most get `large`, the others `small`.
struct Choice {
    std::int64_t missing = std::numeric_limits<std::int64_t>::max();  // rows wanted, not given
    std::int32_t many = 0, large = 0, small = 0;
};

// The best choice of a layer for every total of blocks, [0 .. heads * most].
std::vector<Choice> choices(std::span<const std::int64_t> rows, const RowLayout& layout,
                            std::int64_t most) {
    const auto heads = static_cast<std::int64_t>(rows.size());
    const auto order = by_rows(rows);
    std::vector<Choice> best(size(heads * most + 1));
    // missing[h][c]: of the head at place h in the order with c blocks, summed over the places
    // before
    std::vector<std::int64_t> sums(size((heads + 1) * (most + 1)), 0);
    for (std::int64_t place = 0; place < heads; ++place) {
        for (std::int64_t blocks = 0; blocks <= most; ++blocks) {
            const auto wanted = rows[size(order[size(place)])];
            sums[size((place + 1) * (most + 1) + blocks)] =
                sums[size(place * (most + 1) + blocks)] +
                std::max<std::int64_t>(0, wanted - blocks * layout.multiple);
        }
    }
    const auto missing = [&](std::int64_t first, std::int64_t end, std::int64_t blocks) {
        return sums[size(end * (most + 1) + blocks)] - sums[size(first * (most + 1) + blocks)];
    };
    const std::int64_t most_split = layout.groups == 1 ? 0 : heads - 1;
    for (std::int64_t many = 0; many <= most_split; ++many) {
        for (std::int64_t small = 1; small <= most; ++small) {
            for (std::int64_t large = many == 0 ? most : small + 1; large <= most; ++large) {
                Choice& place = best[size(many * large + (heads - many) * small)];
                const auto without = missing(0, many, large) + missing(many, heads, small);
                if (without >= place.missing) continue;
                place = {without, static_cast<std::int32_t>(many), static_cast<std::int32_t>(large),
                         static_cast<std::int32_t>(small)};
            }
        }
    }
    return best;
}

// Nothing needs to be moved.
bool fits_already(const Plan& plan, const RowLayout& layout) {
    for (std::int64_t layer = 0; layer < plan.layers; ++layer) {
        std::set<std::int64_t> capacities;
        for (std::int64_t head = 0; head < plan.heads; ++head) {
            const auto rows = plan.at(layer, head);
            if (rows == 0 || rows % layout.multiple != 0) return false;
            capacities.insert(rows);
        }
        if (static_cast<std::int64_t>(capacities.size()) > layout.groups) return false;
    }
    return true;
}

}  // namespace

Result<RowLayout> parse_row_layout(std::string_view text) {
    RowLayout layout;
    const auto* end = text.data() + text.size();
    const auto rows = std::from_chars(text.data(), end, layout.multiple);
    bool good = rows.ec == std::errc() && rows.ptr != end && *rows.ptr == 'x';
    if (good) {
        const auto groups = std::from_chars(rows.ptr + 1, end, layout.groups);
        good = groups.ec == std::errc() && groups.ptr == end;
    }
    constexpr std::int64_t kMost = 65536;
    if (!good || layout.multiple < 1 || layout.multiple > kMost || layout.groups < 1 ||
        layout.groups > 2) {
        return bad_input(
            "'{}' is no layout: give rows of a block (1 to {}) x groups a layer (1 or 2), as in "
            "256x2",
            text.substr(0, 64), kMost);
    }
    return layout;
}

// Below so many blocks a head, in the mean, whole blocks would make the plan another one: at one
// block every head gets the same, whatever the method (seen in docs/results.md).
constexpr std::int64_t kLeastBlocks = 3;

Plan fit_to_layout(const Plan& plan, const RowLayout& layout, std::int64_t limit) {
    const auto heads = plan.layers * plan.heads;
    const std::int64_t total = plan.total() / std::max<std::int64_t>(1, layout.multiple);
    if (layout.groups < 1 || layout.groups > 2 || layout.multiple > limit ||
        total < kLeastBlocks * heads) {
        return plan;
    }
    if (fits_already(plan, layout)) return plan;
    const auto wanted = *std::max_element(plan.rows.begin(), plan.rows.end());
    const std::int64_t most =
        std::min({limit / layout.multiple, (wanted + layout.multiple - 1) / layout.multiple + 1,
                  total - heads + 1});
    // Over the layers so far: fewest missing rows for every total of blocks.
    constexpr auto kNever = std::numeric_limits<std::int64_t>::max();
    std::vector<std::int64_t> sums(size(total + 1), kNever);
    sums[0] = 0;
    std::vector<std::vector<std::int32_t>> used;  // [layers][total] blocks of that layer
    std::vector<std::vector<Choice>> all;
    for (std::int64_t layer = 0; layer < plan.layers; ++layer) {
        all.push_back(
            choices(std::span(plan.rows).subspan(size(layer * plan.heads), size(plan.heads)),
                    layout, most));
        std::vector<std::int64_t> next(size(total + 1), kNever);
        auto& chosen = used.emplace_back(size(total + 1), 0);
        for (std::int64_t before = 0; before <= total; ++before) {
            if (sums[size(before)] == kNever) continue;
            const auto room = std::min<std::int64_t>(
                total - before, static_cast<std::int64_t>(all.back().size()) - 1);
            for (std::int64_t blocks = plan.heads; blocks <= room; ++blocks) {
                const auto missing = all.back()[size(blocks)].missing;
                if (missing == kNever) continue;
                auto& place = next[size(before + blocks)];
                if (sums[size(before)] + missing >= place) continue;
                place = sums[size(before)] + missing;
                chosen[size(before + blocks)] = static_cast<std::int32_t>(blocks);
            }
        }
        sums = std::move(next);
    }
    std::int64_t reached = total;
    while (reached > 0 && sums[size(reached)] == kNever) --reached;
    if (reached == 0) return plan;
    Plan fitted = plan;
    for (std::int64_t layer = plan.layers - 1; layer >= 0; --layer) {
        const auto blocks = used[size(layer)][size(reached)];
        const Choice& choice = all[size(layer)][size(blocks)];
        const auto first = layer * plan.heads;
        const auto order = by_rows(std::span(plan.rows).subspan(size(first), size(plan.heads)));
        for (std::size_t place = 0; place < order.size(); ++place) {
            const bool large = place < size(choice.many);
            fitted.rows[size(first + order[place])] =
                (large ? choice.large : choice.small) * layout.multiple;
        }
        reached -= blocks;
    }
    return fitted;
}

std::vector<HeadGroup> group_heads(std::span<const std::int64_t> rows, const RowLayout& layout) {
    const auto order = by_rows(rows);
    const auto heads = rows.size();
    const auto at = [&](std::size_t place) { return rows[size(order[place])]; };
    // cost[g][n]: fewest padded rows of the first n places in at most g groups.
    const std::size_t groups = layout.groups < 1 ? heads : std::min(heads, size(layout.groups));
    std::vector<std::vector<std::int64_t>> cost(
        groups + 1, std::vector<std::int64_t>(heads + 1, std::numeric_limits<std::int64_t>::max()));
    std::vector<std::vector<std::size_t>> start(groups + 1, std::vector<std::size_t>(heads + 1, 0));
    for (auto& row : cost) row[0] = 0;
    for (std::size_t g = 1; g <= groups; ++g) {
        for (std::size_t end = 1; end <= heads; ++end) {
            cost[g][end] = cost[g - 1][end];
            start[g][end] = end;  // no group of its own
            for (std::size_t first = 0; first < end; ++first) {
                if (cost[g - 1][first] == std::numeric_limits<std::int64_t>::max()) continue;
                const auto rows_of = at(first) * static_cast<std::int64_t>(end - first);
                if (cost[g - 1][first] + rows_of >= cost[g][end]) continue;
                cost[g][end] = cost[g - 1][first] + rows_of;
                start[g][end] = first;
            }
        }
    }
    std::vector<HeadGroup> result;
    std::size_t end = heads;
    for (std::size_t g = groups; g > 0 && end > 0; --g) {
        const auto first = start[g][end];
        if (first == end) continue;
        HeadGroup group{at(first), {}};
        group.heads.assign(order.begin() + static_cast<std::ptrdiff_t>(first),
                           order.begin() + static_cast<std::ptrdiff_t>(end));
        std::sort(group.heads.begin(), group.heads.end());
        result.insert(result.begin(), std::move(group));
        end = first;
    }
    return result;
}

}  // namespace headkv
