// What the evaluations have in common on the command line.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "calibrate/run_log.h"
#include "cli/options.h"
#include "eval/config.h"
#include "eval/statistics.h"

namespace headkv::cli {

// Every method at every budget of --rows, each as written_method() takes it. The full f16 cache is
// always there and is left out.
Result<std::vector<ConfigUnderTest>> configurations(const MethodArguments& method,
                                                    const std::vector<std::string>& methods,
                                                    const ModelInfo& info);

// --methods and the options of methods.
void add_comparison_options(CLI::App& command, std::vector<std::string>& methods,
                            MethodArguments& method);

// All that may change the methods' answers, for the identity of a run: one object each.
nlohmann::json describe(std::span<const ConfigUnderTest> configs);
// Adds how the configuration of this name stores its rows (f16 for full): type_k, type_v.
void add_types(nlohmann::json& json, std::span<const ConfigUnderTest> configs,
               std::string_view name);
nlohmann::json interval(const Estimate& estimate);  // [low, high]

// The folder of a run's files is there or made, and `json` can be written. Error (bad_input): not.
Result<void> prepare_output(const std::string& folder, const std::string& json);
// Says so where the log of an earlier run was of other settings.
void note_start(RunLog::Start start, const std::filesystem::path& log);

void register_eval_task(CLI::App& eval, Status& status);  // generate, babilong

}  // namespace headkv::cli
