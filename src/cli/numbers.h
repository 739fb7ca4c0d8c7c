#pragma once

#include <charconv>
#include <optional>
#include <string_view>
#include <system_error>

namespace headkv::cli {

// The number that `text` is from its first to its last character; nothing where it is none.
template <class T>
std::optional<T> number(std::string_view text) {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
}

}  // namespace headkv::cli
