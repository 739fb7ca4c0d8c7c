// The page of `headkv inspect`: one HTML file without anything from elsewhere.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "headkv/engine.h"

namespace headkv::cli {

// A stretch of the prompt that is shown as one piece: a token, or the tokens of one character.
struct Piece {
    std::string text;      // UTF-8
    std::int32_t end = 0;  // position after its last token
    bool control = false;  // a control token, shown by its name
};

struct Inspection {
    std::string model;
    SequenceInfo info;
    // Words and values for the header, such as {"window", "16"}.
    std::vector<std::pair<std::string, std::string>> settings;
    std::vector<std::vector<std::vector<std::int32_t>>> kept;  // [layers][heads] sorted positions
    std::vector<Piece> pieces;                                 // in order, covering the prompt
};

// How many heads of all layers kept each position: [prompt].
std::vector<std::int64_t> heads_per_token(const Inspection& inspection);

std::string inspection_page(const Inspection& inspection);

// "0-5,9,12-13"
std::string position_ranges(const std::vector<std::int32_t>& sorted);

}  // namespace headkv::cli
