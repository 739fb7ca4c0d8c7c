// Where the heads of a layer lie in a device's memory: one attention call takes heads whose rows
// begin a fixed stride apart and sees as many rows of each, less what a mask hides.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "headkv/method.h"

namespace headkv {

// What ggml's CUDA attention wants: rows that a call sees, and the starts of prefill chunks, in
// such blocks.
constexpr std::int64_t kRowBlock = 256;
constexpr std::int64_t whole_blocks(std::int64_t rows) {
    return (rows + kRowBlock - 1) / kRowBlock * kRowBlock;
}

// Heads of one call. The window of a slot's head is the rows
// [(slot * heads + head) * stride, ... + window); its own rows lie in there from first[head] on, no
// two heads' rows overlap. Windows do: what is another head's is masked out.
struct HeadPlaces {
    std::vector<std::int32_t> heads;     // KV heads, sorted
    std::vector<std::int64_t> kept;      // [heads] rows of the prompt
    std::vector<std::int64_t> capacity;  // [heads] rows that each may hold
    std::vector<std::int64_t> first;     // [heads] where its rows begin in its window
    std::int64_t stride = 0;
    std::int64_t window = 0;  // whole blocks

    std::int64_t rows(std::int64_t slots) const {
        return (std::ssize(heads) * slots - 1) * stride + window;
    }
    // Rows that the call reads of one slot.
    std::int64_t read() const { return std::ssize(heads) * window; }
    bool operator==(const HeadPlaces&) const = default;
};

// Heads that keep `rows` of the prompt and may hold `reserve` more.
// layout.groups > 0: as many calls as group_heads() finds groups; every head of a group has the
// whole blocks of its largest as stride and window, so that slots may follow each other.
// layout.groups == 0: one call over all heads in their order, for one slot. A head has exactly its
// rows and its reserve, whatever the others have: the stride is such that windows of few blocks
// reach all heads while little memory, at most 1/32 more than the least, belongs to none.
std::vector<HeadPlaces> place_heads(std::span<const std::int64_t> rows, const RowLayout& layout,
                                    std::int64_t reserve);

// The layout in which a device holds a method's rows where the configuration names none. `exact`:
// the method made without a layout. With one slot a cache, exact plans and one call a layer, as
// long as what that reads in vain is cheap; else two groups a layer in whole blocks.
RowLayout device_layout(const Method& exact, std::int64_t row_bytes, std::int64_t slots);

}  // namespace headkv
