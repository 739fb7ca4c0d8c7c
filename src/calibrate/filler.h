// Original filler prose for needle tests, generated from a grammar: nothing must be downloaded.
#pragma once

#include <cstdint>
#include <string>

namespace headkv {

// Plain English prose of at least `min_bytes` bytes that ends with a whole sentence: paragraphs of
// a few sentences, separated by blank lines. Deterministic for a seed; a longer text begins with
// the shorter one. No digits, no proper names, nothing that answers a question of needles.h, and
// no sentence occurs twice.
std::string filler_text(std::uint64_t seed, std::size_t min_bytes);

}  // namespace headkv
