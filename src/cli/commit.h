// What was built.
#pragma once

#include <string_view>

namespace headkv::cli {

// The commit, with "-dirty" where files were changed since; "unknown" outside of a git checkout.
// Written by each build (cmake/headkvCommit.cmake) to a file of its own.
std::string_view commit();

}  // namespace headkv::cli
