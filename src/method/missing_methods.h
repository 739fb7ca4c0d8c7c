// Methods of the field that cannot be recipes here.
#pragma once

#include <span>
#include <string_view>

namespace headkv {

struct MissingMethod {
    std::string_view name;     // as its paper calls it
    std::string_view paper;    // arXiv number
    std::string_view missing;  // what it needs that is not there, and what there is of it
};

// find_recipe() refuses their names with what is missing.
std::span<const MissingMethod> missing_methods();

}  // namespace headkv
