// `--method auto`: the method that measured curves of the model expect most of within a budget.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "cli/options.h"

namespace headkv::cli {

inline constexpr std::string_view kAutoMethod = "auto";

struct ChosenMethod {
    std::string written;  // as --methods takes it
    MethodConfig config;
    std::string text;  // what was chosen and what to expect, one line
};

// Curves are those of --curves, or found by the model's fingerprint beside the head scores. Errors
// (bad_input): no curves of this model; a budget below all that was measured (names the least).
Result<ChosenMethod> choose_method(const MethodArguments& arguments, const ModelInfo& model,
                                   std::int64_t prompt_tokens);

}  // namespace headkv::cli
