// The metrics of LongBench (2308.14508) to the letter, quirks included, so that figures compare
// with published ones. Text is UTF-8; letter case and character classes are Unicode's. Left out:
// the Chinese question and summary metrics, which need a word segmenter.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace headkv {

// Words in common, counted with multiplicity, of lower-cased texts without ASCII punctuation (which
// joins its neighbours: "don't" is "dont") and without the words a, an, the.
double qa_f1(std::string_view answer, std::string_view reference);

// ROUGE-L as the Python package `rouge` computes it. A text is cut into sentences at every full
// stop and only there; words end at white space, keep their punctuation and letter case, and count
// once however often they occur. The words of the longest common subsequences of all pairs of
// sentences, joined as a set, are what the texts have in common. A sentence of nothing but white
// space, as behind a final full stop and a blank, holds one empty word. 0 where a text has no
// sentence. No limit on the length of a sentence: the package gives up, with a score of 0, where
// Python's recursion ends.
double rouge_l_sets(std::string_view answer, std::string_view reference);

// 1 / labels found in the answer if the reference is among them, else 0. A found label that is part
// of the reference, and not all of it, is struck out; the one after it is then not looked at.
double classification_score(std::string_view answer, std::string_view reference,
                            std::span<const std::string> labels);

// Of the numbers (runs of decimal digits) in the answer, the share that reads like `number`; 0
// without any.
double number_share(std::string_view answer, std::string_view number);

// The digits of the first "Paragraph N" or "段落N" in a reference.
std::optional<std::string_view> paragraph_number(std::string_view reference);

// Edit ratio of the answer's first line without `, # or // to the reference: 2 x longest common
// subsequence of characters / characters of both (Levenshtein with substitutions at 2), rounded to
// whole percent. Leading empty lines do not count; nothing is left if every line has a mark.
double code_similarity(std::string_view answer, std::string_view reference);

}  // namespace headkv
