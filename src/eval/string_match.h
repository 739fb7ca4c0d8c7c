// RULER's two scores (2404.06654): how many of the references occur in the answer.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace headkv {

enum class StringMatch {
    all,  // the share of the references that occur: every one of them is asked for
    part  // one of them is enough: they are ways to write one answer
};

// 0 to 1. ASCII letter case does not matter, control characters of the answer count as blanks.
// Empty references count for nothing; without any other the score is 0.
double string_match(StringMatch match, std::string_view answer,
                    std::span<const std::string> references);

}  // namespace headkv
