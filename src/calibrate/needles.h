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
};

// Written for this project; people and places are invented, so that no answer can be guessed.
std::span<const Needle> single_fact_needles();  // calibration: one sentence, one question
std::span<const Needle> comparison_needles();   // calibration: two persons, two ages, one question
std::span<const Needle> evaluation_needles();   // `eval niah`: none of the calibration's facts

// One JSON object a line: needle, question, real_needle, and optionally answer (default:
// real_needle) and key. Empty lines are skipped. Errors (bad_input): unreadable, not JSON, a
// missing or empty field, real_needle that is not in needle - each with its line number.
Result<std::vector<Needle>> load_needles(const std::filesystem::path& file);

// Position of `part` in `text`, ASCII letters compared without case; npos if absent.
std::size_t find_ignoring_case(std::string_view text, std::string_view part);

}  // namespace headkv
