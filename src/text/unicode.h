// Text as the vocabularies' reference tokenizer sees it: lenient UTF-8 decoding, and a "shadow" of
// the text on which PCRE2 gives the character classes of one fixed Unicode version.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace headkv {

// Decodes the character at text[pos] and moves pos past it. Overlong forms and surrogates are
// decoded like any other sequence; a broken one gives U+FFFD and moves by one byte.
std::uint32_t decode_lenient(std::string_view text, std::size_t& pos);
void append_utf8(std::uint32_t code_point, std::string& out);

// Length that the first byte of a character announces, 1 for a stray continuation byte.
std::size_t announced_length(char first);

// Text ready for splitting into words. Both views have the same length and borrow either from the
// input or from the storages.
struct SplitText {
    std::string_view text;    // every character re-encoded in its shortest form
    std::string_view shadow;  // text, with characters that PCRE2 may class differently replaced by
                              // others of the right class and the same number of bytes
    std::string text_storage, shadow_storage;
};
void prepare_split_text(std::string_view raw, SplitText& out);

// The printable stand-in of each byte in byte-level BPE vocabularies (GPT-2's alphabet).
const std::array<std::string, 256>& byte_alphabet();
// The byte that a stand-in means, -1 when the code point is none.
int alphabet_byte(std::uint32_t code_point);

// Moves the complete characters out of `pending` (appended with new bytes by the caller). Broken
// sequences become U+FFFD; an unfinished character at the end (at most 3 bytes) stays.
std::string take_complete_utf8(std::string& pending);

}  // namespace headkv
