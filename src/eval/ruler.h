// RULER (2404.06654): its 13 synthetic tasks, generated, with their counts of keys, values,
// queries, hops and words, tokens of an answer and scores, checked against github.com/NVIDIA/RULER
// (scripts/synthetic.yaml, scripts/{data,eval}/synthetic/). Every text is our own: the frame of the
// prompts, the words, the filler (Haystack::builtin, in place of essays), and the documents of qa_1
// and qa_2, which the original takes from SQuAD and HotpotQA and which are generated here in the
// same form (one fact asked, or two joined, among numbered documents). The original shows a solved
// example before vt and cwe; here the question says what to write.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/task.h"
#include "headkv/tokenizer.h"

namespace headkv {

struct RulerOptions {
    std::vector<std::string> tasks;              // of ruler_tasks(); empty: all
    std::vector<std::int64_t> lengths = {4096};  // tokens of prompt and answer, at most
    std::int64_t samples = 10;                   // of each task at each length
    std::uint64_t seed = 1;
};

// niah_single_1 .. niah_single_3, niah_multikey_1 .. 3, niah_multivalue, niah_multiquery, vt, cwe,
// fwe, qa_1, qa_2.
std::span<const std::string_view> ruler_tasks();

// Groups are "TASK/LENGTH", ids "TASK/LENGTH/NUMBER". The prompt without a chat template has, with
// the answer behind it, at most the length asked for, and as much filler (distractors, words,
// documents) as fits. Every example carries its score (StringMatch) and the tokens of its answer.
// cwe's words occur 30 and 3 times, below 4096 tokens 6 times and once. Where RULER opens the
// answer for the model ("... in the provided text are"), the question ends in a sentence that says
// what to write.
// Errors (bad_input): an unknown task (lists them), no length, samples below 1, a length too short
// for a task (says what it needs).
Result<TaskData> make_ruler(const RulerOptions& options, const Tokenizer& tokenizer);

}  // namespace headkv
