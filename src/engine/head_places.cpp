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

// All heads one behind the other, none before its window begins: the smallest window, of whole
// blocks, for starts `stride` apart. `first`, where wanted: where the rows begin in the windows.
std::int64_t window_for(std::span<const std::int64_t> capacity, std::int64_t stride,
                        std::span<std::int64_t> first = {}) {
    std::int64_t window = 0, begin = 0, end = 0;
    for (std::size_t i = 0; i < capacity.size(); ++i, begin += stride) {
        const auto own = std::max(begin, end);
        if (!first.empty()) first[i] = own - begin;
        end = own + capacity[i];
        window = std::max(window, end - begin);
    }
    return whole_blocks(window);
}

// A prompt waits for the places of every layer: strides are compared without making any.
HeadPlaces in_one_call(std::span<const std::int64_t> rows, std::int64_t reserve) {
    HeadPlaces places;
    places.heads.resize(rows.size());
    std::iota(places.heads.begin(), places.heads.end(), 0);
    places.kept.assign(rows.begin(), rows.end());
    for (const auto kept : rows) places.capacity.push_back(kept + reserve);
    places.first.assign(rows.size(), 0);
    const auto [least, most] = std::minmax_element(places.capacity.begin(), places.capacity.end());
    // The smaller the stride, the less memory behind the last head, and the larger the window.
    constexpr std::int64_t kTries = 256;
    const auto between = std::max<std::int64_t>(1, *most / kTries);
    struct Try {
        std::int64_t stride = 0, window = 0, memory = 0;
    };
    std::vector<Try> tries;
    tries.reserve(kTries + 2);
    const auto add = [&](std::int64_t stride) {
        const auto window = window_for(places.capacity, stride);
        tries.push_back({stride, window, (std::ssize(rows) - 1) * stride + window});
    };
    add(*most);
    for (auto stride = between; *least < *most && stride < *most; stride += between) add(stride);
    const auto limit = std::ranges::min_element(tries, {}, &Try::memory)->memory / 32 * 33;
    const auto better = [&](const Try& a, const Try& b) {
        const bool a_fits = a.memory <= limit, b_fits = b.memory <= limit;
        if (a_fits != b_fits) return a_fits;
        if (a.window != b.window) return a.window < b.window;
        return a.memory < b.memory;
    };
    places.stride = std::ranges::min_element(tries, better)->stride;
    places.window = window_for(places.capacity, places.stride, places.first);
    return places;
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
