// The pages of docs/methods/, as the build read them.
#pragma once

#include <string_view>

namespace headkv::cli {

// Markdown; empty where the method has none.
std::string_view method_page(std::string_view name);

}  // namespace headkv::cli
