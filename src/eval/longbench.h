// Benchmarks that come as a folder of JSON lines, SET.jsonl, and a tasks.json of prompts.
//
// A line is an object of "context" and "input" (the question), "answers": [texts], and, where the
// metric needs them, "all_classes": [texts]; "_id" is optional. tasks.json has for each set
// "prompt" with the places {context} and {input}, "metric" (LongBench's name), "max_new_tokens",
// "first_line_only" and "multi_answer": "max".
#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "eval/task.h"

namespace headkv {

// LongBench (2308.14508): FOLDER/tasks.json and FOLDER/SET.jsonl of the sets named, or of all sets
// of tasks.json that the folder has. The group of an example is its set. Every line of a set whose
// metric is not there (Chinese words) is skipped, with the reason.
// Errors (bad_input): a file is missing or no JSON (says which, and what it should hold), a set is
// not in tasks.json (lists those that are), or not one line can be used (names the first reason).
Result<TaskData> load_longbench(const std::filesystem::path& folder,
                                std::span<const std::string> sets = {});

// LooGLE's long-dependency questions (2311.04939) as HeadKV scores them, in the same form:
// FOLDER/tasks.json, or else FOLDER/../longbench/tasks.json. Errors: as load_longbench.
Result<TaskData> load_loogle(const std::filesystem::path& folder,
                             std::span<const std::string> sets = {});

}  // namespace headkv
