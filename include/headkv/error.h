// Errors as values: what went wrong, where, and what the user can do about it.
#pragma once

#include <fmt/format.h>

#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace headkv {

// Decides the program's exit status: bad_input 2, failure 1, interrupted 130.
enum class ErrorKind { bad_input, failure, interrupted };

struct Error {
    ErrorKind kind = ErrorKind::failure;
    std::string message;  // one line, no trailing period needed: what, where, what to do
};

template <class T>
using Result = tl::expected<T, Error>;

// The caller's input or usage is at fault; the message says what to change.
template <class... Args>
tl::unexpected<Error> bad_input(fmt::format_string<Args...> text, Args&&... args) {
    return tl::unexpected<Error>(
        Error{ErrorKind::bad_input, fmt::format(text, std::forward<Args>(args)...)});
}

// The input was fine, the work could not be done (out of memory, device lost). A full
// disk is an output that cannot be written: bad_input, with another place to choose.
template <class... Args>
tl::unexpected<Error> failure(fmt::format_string<Args...> text, Args&&... args) {
    return tl::unexpected<Error>(
        Error{ErrorKind::failure, fmt::format(text, std::forward<Args>(args)...)});
}

}  // namespace headkv
