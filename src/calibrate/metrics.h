// How much of the expected answer a response holds.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace headkv {

// Lower-cased words: runs of ASCII letters and digits; bytes of other scripts count as letters.
std::vector<std::string> words_of(std::string_view text);

// Share of the reference's words that occur in the response, counted with multiplicity, 0..1
// (ROUGE-1 recall without stemming). 0 for an empty reference.
double rouge1_recall(std::string_view response, std::string_view reference);

// F1 over words, punctuation and the articles a, an, the left out, as question answering
// benchmarks count it. 0 if either side is empty.
double answer_f1(std::string_view response, std::string_view reference);

}  // namespace headkv
