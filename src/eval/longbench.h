// Benchmarks that come as a folder of JSON lines, SET.jsonl, and a tasks.json of prompts.
//
// A line is an object of "context" and "input" (the question), "answers": [texts], and, where the
// metric needs them, "all_classes": [texts]; "_id" is optional. tasks.json has for each set
// "prompt" with the places {context} and {input}, "metric" (LongBench's name), "max_new_tokens",
// "first_line_only" and "multi_answer": "max"; without that file, the benchmark's own settings
// hold. Prompts are the benchmark's to the letter, and few-shot examples and code are in no chat
// template.
#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "eval/task.h"

namespace headkv {

// LongBench (2308.14508): FOLDER/SET.jsonl of the sets named, or of all sets that the folder has,
// with the settings of FOLDER/tasks.json. The group of an example is its set. Every line of a set
// whose metric is not there (Chinese words) is skipped, with the reason.
// Errors (bad_input): a file is missing or no JSON (says which, and what it should hold), a set is
// not known (lists those that are), or not one line can be used (names the first reason).
Result<TaskData> load_longbench(const std::filesystem::path& folder,
                                std::span<const std::string> sets = {});

// LooGLE's long-dependency questions (2311.04939) as HeadKV scores them, in the same form:
// FOLDER/tasks.json, or else FOLDER/../longbench/tasks.json, or else our own settings. Errors: as
// load_longbench.
Result<TaskData> load_loogle(const std::filesystem::path& folder,
                             std::span<const std::string> sets = {});

// What tasks.json holds where there is none: LongBench's 21 sets and LooGLE's four.
nlohmann::json longbench_settings();

}  // namespace headkv
