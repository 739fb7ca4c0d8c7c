#include "engine/sentences.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

namespace headkv {

namespace {

constexpr std::string_view kBlanks = " \t\r\n";
constexpr std::string_view kClosers = "\"')]}*_";
constexpr std::array<std::string_view, 3> kWideMarks = {"\u3002", "\uff01", "\uff1f"};

bool is_blank(char byte) { return kBlanks.find(byte) != std::string_view::npos; }

// How the text so far ends.
struct End {
    bool mark = false;       // with '.', '!' or '?', but for closers and white space behind it
    bool blank = false;      // with white space
    bool whole = false;      // with a line, a full-width mark or a control token
    std::string bytes = {};  // the last ones: a character may be split over tokens

    // Whether a sentence begins with `next`. Line ends belong to what is before them.
    bool before(std::string_view next) const {
        if (next.empty()) return false;
        if (next.find_first_not_of(kBlanks) == std::string_view::npos &&
            (whole || next.find('\n') != std::string_view::npos)) {
            return false;
        }
        return whole || (mark && (blank || is_blank(next.front())));
    }
    void add(std::string_view piece) {
        const bool only_blanks = piece.find_first_not_of(kBlanks) == std::string_view::npos;
        for (const char byte : piece) {
            blank = is_blank(byte);
            if (blank || (mark && kClosers.find(byte) != std::string_view::npos)) continue;
            mark = byte == '.' || byte == '!' || byte == '?';
        }
        bytes.append(piece);
        bytes.erase(0, bytes.size() - std::min(bytes.size(), kWideMarks[0].size()));
        whole = (whole && only_blanks) || piece.ends_with('\n') ||
                std::ranges::find(kWideMarks, bytes) != kWideMarks.end();
    }
};

}  // namespace

std::vector<std::int32_t> sentence_starts(const Tokenizer& tokenizer,
                                          std::span<const Token> tokens) {
    std::vector<std::int32_t> starts;
    End end;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        const auto at = static_cast<std::int32_t>(i);
        const bool control = tokenizer.is_control(tokens[i]);
        const std::string piece = control ? "" : tokenizer.piece(tokens[i]);
        if (i == 0 || control || end.before(piece) || at - starts.back() >= kLongestSentence) {
            starts.push_back(at);
            end = {};
        }
        end.add(piece);
        if (control) end = {.whole = true};
    }
    return starts;
}

}  // namespace headkv
