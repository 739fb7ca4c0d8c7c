// Finds the tokens that are matched as whole texts before any merging: user-defined ones anywhere,
// control tokens only where the caller allows them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/token_table.h"

namespace headkv {

// Half-open range of bytes.
struct ByteRange {
    std::size_t begin = 0, end = 0;
};

struct Fragment {
    ByteRange range;   // of the text
    Token token = -1;  // the special token that stands here; -1: plain text
};

class SpecialTokens {
public:
    explicit SpecialTokens(const TokenTable& table);  // the table must outlive this object

    // The text in order, cut at its special tokens. `allowed`: sorted, disjoint ranges; a control
    // token counts only when it lies inside of one.
    std::vector<Fragment> partition(std::string_view text,
                                    std::span<const ByteRange> allowed) const;

private:
    bool accepts(Token token, ByteRange match, std::span<const ByteRange> allowed) const;
    std::vector<Token> occurring(std::string_view text, std::span<const ByteRange> allowed) const;
    void carve(std::string_view text, Token token, std::span<const ByteRange> allowed,
               ByteRange range, std::vector<Fragment>& out) const;

    const TokenTable* table_;
    std::vector<std::uint32_t> priority_;  // [vocab] longer texts first; 0: not special
    // A trie of the special texts: (node, byte) -> node; the token that ends at each node.
    std::unordered_map<std::uint64_t, std::uint32_t> edges_;
    std::vector<Token> ends_here_;
    std::vector<bool> first_byte_;  // [256] some special text starts with this byte
};

}  // namespace headkv
