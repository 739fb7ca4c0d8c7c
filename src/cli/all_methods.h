// `--methods all`, where methods are compared.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cli/options.h"

namespace headkv::cli {

inline constexpr std::string_view kAllMethods = "all";

// The method for a prompt that is longer than any budget. Errors (bad_input): those of a method
// that no prompt could be read with.
Result<Method> method_for_long_prompt(const MethodConfig& config, const ModelInfo& model);

// The list with every method of the table in place of "all": those that are not named besides and
// that work with this model and these arguments, on a device or not. What is left out is said, with
// the reason. Errors (bad_input): those of the budget, "all" twice.
Result<std::vector<std::string>> with_all_methods(const MethodArguments& arguments,
                                                  const std::vector<std::string>& methods,
                                                  const ModelInfo& model, bool device);

}  // namespace headkv::cli
