// SentencePiece-style BPE of a whole text: merges neighbours whose joined text is the token with
// the best score, and spells out as bytes what no token covers.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "text/token_table.h"

namespace headkv {

class Spm {
public:
    // scores: [vocab]; both must outlive this object. `unknown` stands for bytes without a token.
    Spm(const TokenTable& table, const std::vector<float>& scores, std::optional<Token> unknown);

    // Appends the tokens of a text in which spaces are already U+2581.
    void encode(std::string_view text, std::vector<Token>& out) const;

private:
    struct Workspace;
    void note_neighbours(std::string_view token);
    bool may_merge_across(std::string_view text, std::size_t border) const;
    void encode_stretch(std::string_view stretch, Workspace& workspace,
                        std::vector<Token>& out) const;
    void append(std::string_view symbol, std::vector<Token>& out) const;

    const TokenTable* table_;
    const std::vector<float>* scores_;
    std::array<Token, 256> bytes_{};     // -1: none
    std::bitset<65536> adjacent_bytes_;  // this byte is followed by that one in some token
    std::bitset<256> before_space_;      // this byte is followed by U+2581 in some token
};

}  // namespace headkv
