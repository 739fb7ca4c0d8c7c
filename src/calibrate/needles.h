// Needles: short texts hidden in a long one, and the question that only they answer.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "headkv/error.h"

namespace headkv {

struct Needle {
    std::string needle;       // what is inserted: one sentence, or two facts and a comparison
    std::string question;     // asked after the text
    std::string real_needle;  // the part of `needle` that answers (ASCII case ignored)
    std::string answer;       // the reference answer, a whole sentence
    std::string key;          // what a right answer must contain; may be empty
    std::string family = {};  // what kind of question it is; probes are counted by it
    // Further sentences that stand elsewhere in the text: the first step of a chain, or others of
    // the same form that answer other questions.
    std::vector<std::string> elsewhere = {};
};

// Written for this project; people and places are invented, so that no answer can be guessed.
std::span<const Needle> single_fact_needles();  // calibration: one sentence, one question
std::span<const Needle> comparison_needles();   // calibration: two persons, two ages, one question
std::span<const Needle> evaluation_needles();   // `eval niah`: none of the calibration's facts

// Calibration, by family (Needle::family), the same number of each (needle_families.cpp):
// single       one fact, asked in its own words
// comparison   two facts and two ages: the fact of the older or the younger one
// two_hop      one sentence leads to another at a different place, which has the answer
// distractors  one of four facts of the same form at four places
// paraphrase   the question shares no content word with the fact
// number       a number to copy; with steps, the larger or the smaller of two
// code         a value in a line of code; with steps, of a name that another name stands for
// `steps`: for scores of kind r2, where a question asks for a step of reasoning wherever a small
// model manages one; without, for kind r: no comparison, no two_hop, and plain numbers and code.
std::vector<Needle> family_needles(bool steps);

// One JSON object a line: needle, question, real_needle, and optionally answer (default:
// real_needle), key, family (default: "file") and elsewhere (a list of texts). Empty lines are
// skipped. Errors (bad_input): unreadable, not JSON, a missing or empty field, real_needle that is
// not in needle - each with its line number.
Result<std::vector<Needle>> load_needles(const std::filesystem::path& file);

// Position of `part` in `text`, ASCII letters compared without case; npos if absent.
std::size_t find_ignoring_case(std::string_view text, std::string_view part);

}  // namespace headkv
