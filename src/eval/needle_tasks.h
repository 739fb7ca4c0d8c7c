// Needles of several kinds in filler, over a grid of lengths and depths. Needles and filler are
// our own; `eval niah` (niah.h) is the plain test with a span in the log.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/task.h"
#include "headkv/tokenizer.h"

namespace headkv {

struct NeedleTaskOptions {
    std::vector<std::string> kinds;                    // of needle_task_kinds(); empty: all
    std::vector<std::int64_t> lengths = {1000, 2500};  // tokens of the whole prompt, at most
    std::vector<double> depths = {10, 50, 90};         // percent of the filler before the needle
    std::int64_t samples = 2;                          // of each kind, length and depth
    std::uint64_t seed = 1;
    std::string split = "dev";  // of needle_splits()
};

// single      one fact, asked in its own words
// multi_key   the fact stands among three of the same form about others, at other depths
// multi_value three facts about one subject, all asked for; one at the depth, two elsewhere
// paraphrase  the question shares no content word with the fact
// reason      two facts at two depths that must be joined: half of them a hop from one to the
//             other, half a comparison of two numbers
// two_hop     the hops of `reason` alone
std::span<const std::string_view> needle_task_kinds();
// dev, where defaults are chosen, and final, where they are measured once they stand: they share
// no form, name, answer or sentence (needle_texts.h).
std::span<const std::string_view> needle_splits();

// Ids "KIND/LENGTH/DEPTH/NUMBER", groups "KIND/LENGTH/DEPTH"; `length` and `depth` are set, for
// heat maps. The prompt without a chat template has at most the length asked for. Of facts that
// belong together the one that holds the answer stands at the depth. Forms of sentences take turns
// over the lengths and samples of a kind; `cluster` is the form, "fact/3".
// Errors (bad_input): an unknown kind (lists them) or split, no length or depth, a depth outside
// 0..100, samples below 1, a length too short for the needles (says what it needs).
Result<TaskData> make_needle_tasks(const NeedleTaskOptions& options, const Tokenizer& tokenizer);

}  // namespace headkv
