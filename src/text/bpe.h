// Byte-level BPE of one word: merges ranked pairs until none is left.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/token_table.h"

namespace headkv {

class Bpe {
public:
    // Buffers of one call, reused from word to word.
    struct Workspace {
        struct Node {
            std::int32_t symbol, previous, next;  // symbol -1: merged into its left neighbour
        };
        struct Pair {
            std::int32_t rank, left, symbol_left, symbol_right;
        };
        std::vector<Node> nodes;
        std::vector<Pair> heap;
        std::string mapped;
    };

    // `merges` are "left right", best first; the table must outlive this object.
    Bpe(const TokenTable& table, const std::vector<std::string>& merges, bool ignore_merges);

    // Appends the tokens of one word, given as plain bytes.
    void encode(std::string_view word, Workspace& workspace, std::vector<Token>& out) const;

private:
    // A symbol is a token id, or, for a text that only occurs in merges, a number above them.
    std::int32_t symbol_of(std::string_view text);
    std::string_view text_of(std::int32_t symbol) const;
    void append(std::int32_t symbol, std::vector<Token>& out) const;
    bool find_pair(const Workspace& workspace, std::int32_t left, Workspace::Pair& pair) const;
    void push_pair(Workspace& workspace, std::int32_t left) const;
    void merge_all(Workspace& workspace) const;

    const TokenTable* table_;
    bool ignore_merges_;
    std::deque<std::string> extra_;  // texts of the symbols that are no tokens
    std::unordered_map<std::string_view, std::int32_t> extra_ids_;
    MergeTable merges_;
    std::array<std::int32_t, 256> byte_symbols_{};
};

}  // namespace headkv
