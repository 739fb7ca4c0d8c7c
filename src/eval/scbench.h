// SCBench (2412.10319): several questions on one cache. Generated tasks of its kinds that need no
// data of others; the texts are our own.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/task.h"
#include "headkv/tokenizer.h"

namespace headkv {

struct ScbenchOptions {
    std::vector<std::string> tasks;              // of scbench_tasks(); empty: all
    std::vector<std::int64_t> lengths = {4096};  // tokens of the prompt of the first question
    std::int64_t samples = 10;                   // of each task at each length
    std::int64_t turns = 5;                      // questions to one context
    std::uint64_t seed = 1;
};

// kv            the value of a key, random codes both
// prefix_suffix the line that begins and ends with given letters
// vt            the variables that hold a value, by a chain of assignments
// many_shot     the category of a new text, by labelled examples (labels without a meaning)
// math_find     the k-th largest or smallest of a list of numbers
// facts         a fact in each part of a text: as many parts as questions
std::span<const std::string_view> scbench_tasks();

// Ids "TASK/LENGTH/NUMBER", groups "TASK" with one length, else "TASK/LENGTH"; the first question
// is TaskExample::question, the others are its turns. The contexts have at most the length asked
// for together with the first question, without a chat template. TaskSettings::turn_mode decides
// how the further questions are asked.
// Errors (bad_input): as make_ruler's; turns below 1 or above 20.
Result<TaskData> make_scbench(const ScbenchOptions& options, const Tokenizer& tokenizer);

}  // namespace headkv
