#include "eval/string_match.h"

#include <cstdint>

namespace headkv {
namespace {

std::string plain(std::string_view text) {
    std::string result(text);
    for (char& c : result) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
        if (c >= 0 && c < ' ') c = ' ';
    }
    return result;
}

}  // namespace

double string_match(StringMatch match, std::string_view answer,
                    std::span<const std::string> references) {
    const std::string said = plain(answer);
    std::int64_t asked = 0;
    std::int64_t found = 0;
    for (const std::string& reference : references) {
        if (reference.empty()) continue;
        ++asked;
        if (said.find(plain(reference)) != std::string::npos) ++found;
    }
    if (found == 0) return 0;
    return match == StringMatch::part ? 1 : static_cast<double>(found) / static_cast<double>(asked);
}

}  // namespace headkv
