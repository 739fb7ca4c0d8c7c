#include "calibrate/haystack.h"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iterator>
#include <system_error>
#include <vector>

#include "calibrate/filler.h"

namespace headkv {
namespace {

constexpr std::size_t kShortest = 200;  // bytes: less is no haystack

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

}  // namespace

std::size_t sentence_border(std::string_view text, std::size_t offset) {
    constexpr std::string_view closing = "\"')]";
    for (std::size_t at = std::min(offset, text.size()); at > 0; --at) {
        if (at < text.size() && !is_space(text[at])) continue;
        std::size_t last = at - 1;
        while (last > 0 && closing.find(text[last]) != std::string_view::npos) --last;
        if (text[last] == '.' || text[last] == '!' || text[last] == '?') return at;
    }
    return 0;
}

std::uint64_t hash_text(std::string_view text) {
    std::uint64_t hash = 0xcbf29ce484222325ULL;
    for (const char c : text) {
        hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
    }
    return hash;
}

Haystack Haystack::builtin(std::uint64_t seed) {
    Haystack haystack;
    haystack.seed_ = seed;
    haystack.name_ = fmt::format("built-in prose, seed {}", seed);
    return haystack;
}

Result<Haystack> Haystack::folder(const std::filesystem::path& folder) {
    std::error_code error;
    std::vector<std::filesystem::path> files;
    for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end;
         it.increment(error)) {
        if (it->path().extension() == ".txt") files.push_back(it->path());
    }
    if (error) return bad_input("{}: cannot read the haystack folder", folder.string());
    if (files.empty())
        return bad_input("{}: the haystack folder has no .txt file", folder.string());
    std::sort(files.begin(), files.end());
    Haystack haystack;
    for (const auto& file : files) {
        std::ifstream in(file, std::ios::binary);
        if (!in) return bad_input("{}: cannot read the haystack text", file.string());
        if (!haystack.text_.empty()) haystack.text_ += "\n\n";
        haystack.text_.append(std::istreambuf_iterator<char>(in), {});
    }
    if (haystack.text_.size() < kShortest) {
        return bad_input("{}: the haystack holds only {} bytes of text, at least {} are needed",
                         folder.string(), haystack.text_.size(), kShortest);
    }
    haystack.name_ = fmt::format("{} files, {} bytes, hash {:016x}", files.size(),
                                 haystack.text_.size(), hash_text(haystack.text_));
    return haystack;
}

std::string Haystack::text(std::int64_t part, std::size_t bytes) const {
    if (text_.empty()) {
        // An odd multiplier keeps the seeds of neighbouring runs and parts apart.
        return filler_text(seed_ + static_cast<std::uint64_t>(part) * 0x9e3779b97f4a7c15ULL, bytes);
    }
    // Golden-ratio steps spread any number of parts evenly over the text.
    const double turn = static_cast<double>(part) * 0.6180339887498949;
    const double share = turn - static_cast<double>(static_cast<std::int64_t>(turn));
    std::size_t start =
        sentence_border(text_, static_cast<std::size_t>(share * static_cast<double>(text_.size())));
    while (start < text_.size() && is_space(text_[start])) ++start;
    std::string text = text_.substr(start, bytes);
    while (text.size() < bytes) text += "\n\n" + text_.substr(0, bytes - text.size());
    return text;
}

}  // namespace headkv
