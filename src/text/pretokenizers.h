// The patterns that cut text into words before byte-level BPE, one entry per tokenizer.ggml.pre.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "headkv/error.h"

namespace headkv {

struct PreTokenizer {
    // Applied one after the other, each to every piece that the previous one left. A piece is cut
    // around its matches; the text between two matches is a piece too.
    std::vector<std::string> patterns;
    bool add_bos = false;        // the default where the metadata does not say
    bool ignore_merges = false;  // a word that is a token as a whole is that token
    bool has_bos = true;         // whether a missing BOS id has a default
};

// By the name in the metadata (empty: "default"). Error (bad_input): unknown name, the known ones
// are listed.
Result<PreTokenizer> pre_tokenizer(std::string_view name);

}  // namespace headkv
