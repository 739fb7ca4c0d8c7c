// Original filler prose for needle tests, generated from a grammar: nothing must be downloaded.
#pragma once

#include <cstdint>
#include <string>

namespace headkv {

// village is what calibration and most tests read, city what only final probes do
// (needle_tasks.h): no sentence of one is one of the other.
enum class Prose { village, city };

// Plain English prose of at least `min_bytes` bytes that ends with a whole sentence: paragraphs of
// a few sentences, separated by blank lines. Deterministic for a seed; a longer text begins with
// the shorter one. No digits, no proper names, nothing that answers a question of needles.h, and
// no sentence occurs twice.
std::string filler_text(std::uint64_t seed, std::size_t min_bytes, Prose prose = Prose::village);

}  // namespace headkv
