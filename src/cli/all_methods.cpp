#include "cli/all_methods.h"

#include <algorithm>

#include "cli/common.h"
#include "engine/device_engine.h"

namespace headkv::cli {
namespace {

// Why prompts of this model cannot be read with the method; nothing where they can.
Result<void> check_usable(const MethodArguments& arguments, std::string_view method,
                          const ModelInfo& model, bool device) {
    auto config = method_config(arguments, method, model);
    if (!config) return tl::unexpected(config.error());
    if (model.share) config->share = model.share;
    const auto made = method_for_long_prompt(*config, model);
    if (!made) return tl::unexpected(made.error());
    return device ? DeviceEngine::supports(*made) : Result<void>();
}

}  // namespace

Result<Method> method_for_long_prompt(const MethodConfig& config, const ModelInfo& model) {
    const auto bytes = row_bytes(config.store, model.head_dim_k, model.head_dim_v);
    if (!bytes) return tl::unexpected(bytes.error());
    constexpr std::int64_t kLong = 1 << 20;  // no budget in rows is above it
    return Method::create(config, model.shape, kLong, *bytes);
}

Result<std::vector<std::string>> with_all_methods(const MethodArguments& arguments,
                                                  const std::vector<std::string>& methods,
                                                  const ModelInfo& model, bool device) {
    const auto all = std::ranges::find(methods, kAllMethods);
    if (all == methods.end()) return methods;
    if (std::ranges::count(methods, kAllMethods) > 1) return bad_input("all is named twice");
    if (const auto budget = method_budget(arguments); !budget) {
        return tl::unexpected(budget.error());
    }
    std::vector<std::string> list(methods.begin(), all);
    for (const Recipe& recipe : recipes()) {
        if (std::ranges::find(methods, recipe.name) != methods.end()) continue;
        if (const auto usable = check_usable(arguments, recipe.name, model, device); !usable) {
            note(fmt::format("all leaves out {}: {}", recipe.name, usable.error().message));
            continue;
        }
        list.emplace_back(recipe.name);
    }
    list.insert(list.end(), all + 1, methods.end());
    return list;
}

}  // namespace headkv::cli
