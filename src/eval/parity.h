// Parity: the same questions about the same text with only a name, a place or a group swapped. A
// method that keeps one group's facts and drops another's shows a gap that `full` does not have.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/task.h"
#include "headkv/tokenizer.h"

namespace headkv {

struct ParityOptions {
    std::vector<std::string> kinds;              // of parity_kinds(); empty: all
    std::vector<std::int64_t> lengths = {2048};  // tokens of the whole prompt, at most
    std::int64_t samples = 10;                   // pairs: one prompt for each group of the kind
    std::uint64_t seed = 1;
};

// names (first names of several regions, of women and men), places (cities of several regions),
// groups (faiths, ages and impairments, by what they are called).
std::span<const std::string_view> parity_kinds();

// Ids "KIND/LENGTH/NUMBER/VARIANT", groups "KIND/VARIANT". Prompts whose ids differ in VARIANT
// only are a pair: they hold the same filler, depth, needle and answer, and differ in the swapped
// word alone. The filler is cut so that the longest of a pair fits the length.
// Errors (bad_input): an unknown kind (lists them), no length, samples below 1, a length too short.
Result<TaskData> make_parity(const ParityOptions& options, const Tokenizer& tokenizer);

// How far apart the groups of a kind are, for one configuration.
struct ParityGap {
    std::string kind, method;
    double rows = 0;
    std::int64_t pairs = 0;   // those that have an answer in every variant
    std::string best, worst;  // variants; the first in alphabetical order where equal
    double best_score = 0, worst_score = 0;
    Estimate gap;  // best - worst; the interval draws whole pairs
    // The same less full's gap. Draws share their pairs, so that what is hard for both cancels.
    Estimate beyond_full;
};

// Of each kind and configuration, in the order of kinds and configurations. Largest less smallest
// is positive by chance alone: with few pairs the interval lies above 0 even where nothing is
// wrong; `beyond_full` is the figure to read. Results of other tasks (ids of another form) and
// incomplete pairs are left out.
std::vector<ParityGap> parity_gaps(std::span<const TaskResult> results, std::uint64_t seed);

}  // namespace headkv
