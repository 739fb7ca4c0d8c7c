#pragma once

#include <cstddef>
#include <string_view>

namespace headkv {

// The edits (insert, delete, replace) between two words; for "did you mean". Time and memory grow
// with both lengths: cut what a user may have typed.
std::size_t edit_distance(std::string_view a, std::string_view b);

}  // namespace headkv
