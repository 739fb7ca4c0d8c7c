// What the evaluations have in common on the command line.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "calibrate/run_log.h"
#include "cli/options.h"
#include "eval/config.h"
#include "eval/report.h"
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

// --raw, --chat-template, --system and --keep-system.
void add_template_options(CLI::App& command, PromptArguments& prompt);
// Parts of prompts are to be kept, or there is a system message. Errors (bad_input): no template to
// put it into, a method that cannot keep them whatever its budget.
Result<void> check_parts(const PromptArguments& prompt, std::optional<ChatTemplate> chat,
                         std::span<const ConfigUnderTest> configs, const ModelInfo& info);
// Both for the identity of a run; adds nothing where nothing was asked for.
void add_parts(nlohmann::json& identity, const PromptArguments& prompt);

// All that may change a method's answers.
nlohmann::json describe(const MethodConfig& config);
// The same of several, for the identity of a run: one object each.
nlohmann::json describe(std::span<const ConfigUnderTest> configs);
// Adds how the configuration of this name stores its rows (f16 for full): type_k, type_v.
void add_types(nlohmann::json& json, std::span<const ConfigUnderTest> configs,
               std::string_view name);
nlohmann::json interval(const Estimate& estimate);  // [low, high]

// The folder of a run's files is there or made, and `json` can be written. Error (bad_input): not.
Result<void> prepare_output(const std::string& folder, const std::string& json);
// Says so where the log of an earlier run was of other settings.
void note_start(RunLog::Start start, const std::filesystem::path& log);

// The head of a report with all that is known before the run: the model, the configurations (full
// first), what built the program.
ReportHead report_head(std::string_view task, const ModelInfo& info,
                       std::span<const ConfigUnderTest> configs);
// The report as a table for a terminal.
std::string report_text(const Report& report);
// results.csv and report.html of one task or several; results.json where it is one of examples
// (tasks with more to say write their own). Errors: those of write_output.
Result<void> write_report(const std::string& folder, std::span<const Report> reports,
                          bool json = true);
// What --json asks for: results.json of one task, a list of several.
Result<void> write_report_json(const std::string& file, std::span<const Report> reports);
Result<void> write_results_json(const std::string& file, std::span<const nlohmann::json> results);
// As results.json is written.
std::string text_of(const nlohmann::json& json);

// results.json, results.csv and report.html of the needle test; fills what results.json holds.
Result<Report> write_niah(const std::string& folder, ReportHead head,
                          std::span<const NiahProbe> probes, nlohmann::json& json);

void register_eval_text(CLI::App& eval, Status& status);   // ppl, kld
void register_eval_tasks(CLI::App& eval, Status& status);  // those of eval_tasks()
void register_eval_merge(CLI::App& eval, Status& status);
void register_eval_curves(CLI::App& eval, Status& status);

}  // namespace headkv::cli
