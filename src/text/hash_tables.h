// Two open-addressing tables for the hot look-ups of tokenizing: a vocabulary has hundreds of
// thousands of entries, and a node-based map spends its time on cache misses.
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace headkv {

// Text -> index of this text in an array that the caller keeps and passes in.
class TextIndex {
public:
    void reserve(std::size_t count) { slots_.assign(std::bit_ceil(count * 2 + 2), Slot{}); }

    // Of equal texts the last one wins. At most as many texts as were reserved.
    void insert(std::span<const std::string> texts, std::int32_t index) {
        const std::string_view text = texts[static_cast<std::size_t>(index)];
        const std::uint32_t hash = hash_of(text);
        slots_[place(texts, text, hash)] = {hash, index};
    }

    // -1 when no text equals this one.
    std::int32_t find(std::span<const std::string> texts, std::string_view text) const {
        return slots_.empty() ? -1 : slots_[place(texts, text, hash_of(text))].index;
    }

private:
    struct Slot {
        std::uint32_t hash = 0;
        std::int32_t index = -1;
    };

    static std::uint32_t hash_of(std::string_view text) {
        return static_cast<std::uint32_t>(std::hash<std::string_view>{}(text));
    }

    // The text's slot, or the free one where it belongs.
    std::size_t place(std::span<const std::string> texts, std::string_view text,
                      std::uint32_t hash) const {
        std::size_t i = hash & (slots_.size() - 1);
        while (slots_[i].index >= 0 && (slots_[i].hash != hash ||
                                        texts[static_cast<std::size_t>(slots_[i].index)] != text)) {
            i = (i + 1) & (slots_.size() - 1);
        }
        return i;
    }

    std::vector<Slot> slots_;
};

// A pair of symbols -> the rank of their merge and the symbol it makes.
class MergeTable {
public:
    struct Merge {
        std::int32_t rank = -1, symbol = -1;  // rank -1: no such merge
    };

    void reserve(std::size_t count) { slots_.assign(std::bit_ceil(count * 2 + 2), Slot{}); }

    // Of equal pairs the first one wins. At most as many pairs as were reserved.
    void insert(std::int32_t left, std::int32_t right, Merge merge) {
        Slot& slot = slots_[place(left, right)];
        if (slot.merge.rank < 0) {
            slot = {left, right, merge};
        }
    }

    Merge find(std::int32_t left, std::int32_t right) const {
        return slots_[place(left, right)].merge;
    }

private:
    struct Slot {
        std::int32_t left = -1, right = -1;
        Merge merge;
    };

    std::size_t place(std::int32_t left, std::int32_t right) const {
        const std::uint64_t key =
            (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32U) |
            static_cast<std::uint32_t>(right);
        // An odd multiplier spreads both ids over the upper bits.
        std::size_t i = ((key ^ (key >> 29U)) * 0x9E3779B97F4A7C15ULL) >> 32U;
        for (i &= slots_.size() - 1; slots_[i].merge.rank >= 0; i = (i + 1) & (slots_.size() - 1)) {
            if (slots_[i].left == left && slots_[i].right == right) {
                break;
            }
        }
        return i;
    }

    std::vector<Slot> slots_;
};

}  // namespace headkv
