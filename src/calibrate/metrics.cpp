#include "calibrate/metrics.h"

#include <algorithm>
#include <cstdint>
#include <unordered_map>

namespace headkv {
namespace {

bool is_word_byte(char c) {
    const auto u = static_cast<unsigned char>(c);
    return u >= 0x80 || (u >= '0' && u <= '9') || (u >= 'a' && u <= 'z') || (u >= 'A' && u <= 'Z');
}

std::int64_t common_words(const std::vector<std::string>& a, const std::vector<std::string>& b) {
    std::unordered_map<std::string_view, std::int64_t> left;
    for (const std::string& word : a) ++left[word];
    std::int64_t common = 0;
    for (const std::string& word : b) {
        const auto found = left.find(word);
        if (found == left.end() || found->second == 0) continue;
        --found->second;
        ++common;
    }
    return common;
}

// Punctuation disappears instead of splitting ("don't" is "dont"), as the QA metric has it.
std::vector<std::string> answer_words(std::string_view text) {
    std::vector<std::string> words;
    std::string word;
    const auto finish = [&] {
        if (!word.empty() && word != "a" && word != "an" && word != "the") words.push_back(word);
        word.clear();
    };
    for (const char c : text) {
        if (c == ' ' || c == '\n' || c == '\t' || c == '\r') {
            finish();
        } else if (is_word_byte(c)) {
            word += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
        }
    }
    finish();
    return words;
}

}  // namespace

std::vector<std::string> words_of(std::string_view text) {
    std::vector<std::string> words;
    std::string word;
    for (const char c : text) {
        if (is_word_byte(c)) {
            word += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
        } else if (!word.empty()) {
            words.push_back(std::move(word));
            word.clear();
        }
    }
    if (!word.empty()) words.push_back(std::move(word));
    return words;
}

double rouge1_recall(std::string_view response, std::string_view reference) {
    const std::vector<std::string> expected = words_of(reference);
    if (expected.empty()) return 0;
    return static_cast<double>(common_words(words_of(response), expected)) /
           static_cast<double>(expected.size());
}

double answer_f1(std::string_view response, std::string_view reference) {
    const std::vector<std::string> given = answer_words(response);
    const std::vector<std::string> expected = answer_words(reference);
    const auto common = static_cast<double>(common_words(given, expected));
    if (common == 0) return 0;
    const double precision = common / static_cast<double>(given.size());
    const double recall = common / static_cast<double>(expected.size());
    return 2 * precision * recall / (precision + recall);
}

}  // namespace headkv
