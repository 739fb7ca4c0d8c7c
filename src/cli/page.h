// What all our HTML pages share: one file each, nothing from elsewhere, light and dark.
#pragma once

#include <string>
#include <string_view>

namespace headkv::cli {

// Everything up to the first element of <main>; `styles` follows the shared ones.
std::string page_head(std::string_view title, std::string_view styles);
// A large figure with what it is, for <div class=figures>.
std::string figure(const std::string& value, const std::string& what);
// For HTML text and quoted attributes; control characters become visible signs.
std::string escape_html(std::string_view text);

}  // namespace headkv::cli
