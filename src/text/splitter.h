// Cuts text into words with a list of PCRE2 patterns.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/error.h"

namespace headkv {

class Splitter {
public:
    // Error (failure): a pattern that PCRE2 does not compile.
    static Result<Splitter> create(const std::vector<std::string>& patterns);
    Splitter(Splitter&&) noexcept;
    Splitter& operator=(Splitter&&) noexcept;
    ~Splitter();

    // Ends (exclusive, ascending, the last one is text.size()) of the pieces of a valid UTF-8 text.
    // May be called from several threads at once.
    std::vector<std::size_t> split(std::string_view text) const;

private:
    struct Impl;
    explicit Splitter(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace headkv
