#include "engine/head_places.h"

#include <algorithm>
#include <cassert>
#include <numeric>

#include "method/layout.h"

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

// Rows of a layer that one call reads in vain, in bytes: so much costs about what a second call and
// the joining of its results does (14 to 20 us on an H100, docs/performance.md), as neighbours'
// rows are mostly in a cache of the GPU.
constexpr std::int64_t kMostInVain = 32 << 20;

// All heads one behind the other, none before its window begins; the window is the smallest.
void pack(HeadPlaces& places, std::int64_t stride) {
    places.stride = stride;
    places.window = 0;
    std::int64_t end = 0;
    for (std::size_t i = 0; i < places.heads.size(); ++i) {
        const auto begin = static_cast<std::int64_t>(i) * stride;
        places.first[i] = std::max<std::int64_t>(0, end - begin);
        end = begin + places.first[i] + places.capacity[i];
        places.window = std::max(places.window, end - begin);
    }
    places.window = whole_blocks(places.window);
}

HeadPlaces in_one_call(std::span<const std::int64_t> rows, std::int64_t reserve) {
    HeadPlaces places;
    places.heads.resize(rows.size());
    std::iota(places.heads.begin(), places.heads.end(), 0);
    places.kept.assign(rows.begin(), rows.end());
    for (const auto kept : rows) places.capacity.push_back(kept + reserve);
    places.first.assign(rows.size(), 0);
    const auto [least, most] = std::minmax_element(places.capacity.begin(), places.capacity.end());
    std::vector<std::int64_t> strides{*most};
    // The smaller the stride, the less memory behind the last head, and the larger the window.
    constexpr std::int64_t kTries = 256;
    const auto between = std::max<std::int64_t>(1, *most / kTries);
    for (auto stride = between; *least < *most && stride < *most; stride += between) {
        strides.push_back(stride);
    }
    std::vector<HeadPlaces> all;
    for (const auto stride : strides) {
        pack(places, stride);
        all.push_back(places);
    }
    const auto memory = [](const HeadPlaces& one) { return one.rows(1); };
    const auto limit = memory(*std::ranges::min_element(all, {}, memory)) / 32 * 33;
    const auto better = [&](const HeadPlaces& a, const HeadPlaces& b) {
        const bool a_fits = memory(a) <= limit, b_fits = memory(b) <= limit;
        if (a_fits != b_fits) return a_fits;
        if (a.window != b.window) return a.window < b.window;
        return memory(a) < memory(b);
    };
    return *std::ranges::min_element(all, better);
}

}  // namespace

std::vector<HeadPlaces> place_heads(std::span<const std::int64_t> rows, const RowLayout& layout,
                                    std::int64_t reserve) {
    if (layout.groups == 0) return {in_one_call(rows, reserve)};
    std::vector<HeadPlaces> result;
    for (auto& group : group_heads(rows, layout)) {
        auto& places = result.emplace_back();
        places.heads = std::move(group.heads);
        places.stride = places.window = whole_blocks(group.rows + reserve);
        for (const auto head : places.heads) places.kept.push_back(rows[size(head)]);
        places.capacity.assign(places.heads.size(), places.window);
        places.first.assign(places.heads.size(), 0);
    }
    return result;
}

RowLayout device_layout(const Method& exact, std::int64_t row_bytes, std::int64_t slots) {
    assert(exact.config().layout == RowLayout());
    const RowLayout grouped{kRowBlock, 2};
    if (slots > 1 && !exact.rows_follow_prompt()) return grouped;
    const auto& plan = exact.plan();
    std::int64_t in_vain = 0;
    for (std::int64_t layer = 0; layer < plan.layers; ++layer) {
        const std::span rows(plan.rows.data() + layer * plan.heads, size(plan.heads));
        const auto total = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
        // Where the prompt decides which heads get them: as many as are read for something.
        const auto others = exact.rows_follow_prompt()
                                ? total
                                : in_one_call(rows, exact.config().options.reserve).read() - total;
        in_vain += others * row_bytes;
    }
    return exact.runs_as_full() || in_vain <= kMostInVain * plan.layers ? RowLayout() : grouped;
}

}  // namespace headkv
