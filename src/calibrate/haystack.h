// The long text that needles are hidden in: a folder of .txt files, or built-in filler prose.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "headkv/error.h"

namespace headkv {

class Haystack {
public:
    // Built-in prose; another text for each part.
    static Haystack builtin(std::uint64_t seed);
    // All .txt files of a folder in the order of their names, blank lines between them.
    // Errors (bad_input): not a folder, no .txt file, unreadable, almost empty.
    static Result<Haystack> folder(const std::filesystem::path& folder);

    // At least `bytes` bytes of text, for one part (needle): parts begin at different places of a
    // folder's text, at the start of a sentence; a text that is too short is repeated.
    std::string text(std::int64_t part, std::size_t bytes) const;

    // Bytes of a folder's text; 0: built-in, which has no end.
    std::size_t bytes() const { return text_.size(); }
    // A folder's text from its beginning, empty if built-in.
    const std::string& whole() const { return text_; }

    // Names the text and its content, for the settings of a run.
    const std::string& name() const { return name_; }

private:
    std::uint64_t seed_ = 0;
    std::string text_;  // empty: built-in
    std::string name_;
};

// End of the last sentence that ends at or before `offset`: just after its punctuation and closing
// quotes, white space or the text's end following. 0 if there is none.
std::size_t sentence_border(std::string_view text, std::size_t offset);

// 64-bit FNV-1a, to tell settings and texts apart.
std::uint64_t hash_text(std::string_view text);

}  // namespace headkv
