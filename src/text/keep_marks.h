// <keep>...</keep> in a prompt: parts of it whose rows stay whatever a method thinks of them.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/error.h"

namespace headkv {

struct ByteSpan {
    std::size_t begin = 0, end = 0;  // [begin, end)
    bool operator==(const ByteSpan&) const = default;
};

struct UnmarkedText {
    std::string text;             // without the marks
    std::vector<ByteSpan> spans;  // of `text`, in order, none empty
};

// Errors (bad_input): a mark without its other half, or inside another; says in which line.
Result<UnmarkedText> take_keep_marks(std::string_view text);

}  // namespace headkv
