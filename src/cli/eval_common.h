// What the evaluations have in common on the command line.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/options.h"
#include "eval/statistics.h"

namespace headkv::cli {

struct ConfigUnderTest {
    MethodConfig method;
    std::string name;  // the method as written, with its own options where it has some
    double rows = 0;
};

// Every method at every budget of --rows; full is always there and is left out. A method may bring
// options of its own: "headkv-r2:window=24:kernel=13".
Result<std::vector<ConfigUnderTest>> configurations(const MethodArguments& method,
                                                    const std::vector<std::string>& methods,
                                                    const ModelInfo& info);

// --methods and the options of methods.
void add_comparison_options(CLI::App& command, std::vector<std::string>& methods,
                            MethodArguments& method);

// All that may change a method's answers, for the identity of a run.
nlohmann::json describe(const MethodConfig& config);
nlohmann::json interval(const Estimate& estimate);  // [low, high]

void register_eval_task(CLI::App& eval, Status& status);  // generate, babilong

}  // namespace headkv::cli
