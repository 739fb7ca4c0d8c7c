#include "cli/auto_method.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "cli/eval_common.h"
#include "eval/curves.h"

namespace headkv::cli {
namespace {

constexpr std::string_view kSuffix = ".curves.json";

Result<Curves> find_curves(const MethodArguments& arguments, const ModelInfo& model) {
    if (arguments.curves) {
        auto curves = load_curves(*arguments.curves);
        if (curves && curves->fingerprint != model.fingerprint) {
            return bad_input(
                "{} holds curves of {} (fingerprint {}), the model's fingerprint is {}: measure "
                "this model with `headkv eval` and `headkv eval curves`",
                *arguments.curves, curves->model, curves->fingerprint, model.fingerprint);
        }
        return curves;
    }
    for (const auto& folder : score_folders()) {
        std::set<std::filesystem::path> files;  // the folder's own order is not fixed
        std::error_code error;
        for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
            if (entry.path().string().ends_with(kSuffix)) files.insert(entry.path());
        }
        for (const auto& file : files) {
            auto curves = load_curves(file);
            if (curves && curves->fingerprint == model.fingerprint) return curves;
        }
    }
    return bad_input(
        "--method auto needs measured curves of this model (fingerprint {}): run `headkv eval` and "
        "give its results.json with --curves, or name a method",
        model.fingerprint);
}

// The budget in f16 rows a head.
double rows_of(const Budget& budget, const ModelInfo& model, std::int64_t prompt_tokens) {
    const auto heads = static_cast<double>(model.shape.layers * model.shape.kv_heads);
    switch (budget.unit) {
        case Budget::Unit::rows:
            break;
        case Budget::Unit::bytes:
            return budget.value / heads /
                   static_cast<double>(*row_bytes({}, model.head_dim_k, model.head_dim_v));
        case Budget::Unit::share:
            return budget.value * static_cast<double>(prompt_tokens);
    }
    return budget.value;
}

std::string tasks_of(const Curves& curves) {
    std::string text;
    std::set<std::string> names;
    for (const Curve& curve : curves.curves) names.insert(curve.task);
    for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

std::string expectation_text(const Expectation& best, const Curves& curves, double rows) {
    const auto measured =
        best.beyond ? fmt::format("more than the {:.0f} measured, whose figures these are",
                                  best.measured_low)
        : best.measured_low == best.measured_high
            ? std::string("as measured")
            : fmt::format("between {:.0f} and {:.0f} measured", best.measured_low,
                          best.measured_high);
    return fmt::format(
        "auto: {} in the bytes of {:.4g} f16 rows a head ({}). Expected on {} (n {}): {:.0f} % of "
        "the "
        "full cache's score, {:+.3f} nats a token of the answer ({:.3f} to {:.3f})",
        best.method, rows, measured, tasks_of(curves), best.examples, 100 * best.share_of_full,
        best.dlogprob, best.low, best.high);
}

double least_rows(const Curves& curves) {
    double least = INFINITY;
    for (const Curve& curve : curves.curves) {
        if (!curve.whole) least = std::min(least, std::ceil(curve.points.front().rows));
    }
    return least;
}

}  // namespace

Result<ChosenMethod> choose_method(const MethodArguments& arguments, const ModelInfo& model,
                                   std::int64_t prompt_tokens) {
    const auto budget = method_budget(arguments);
    if (!budget) return tl::unexpected(budget.error());
    const double rows = rows_of(*budget, model, prompt_tokens);
    if (rows >= static_cast<double>(prompt_tokens)) {
        auto config = method_config(arguments, "full", model);
        if (!config) return tl::unexpected(config.error());
        return ChosenMethod{"full", std::move(*config),
                            "auto: full, as the whole prompt fits into the budget"};
    }
    const auto curves = find_curves(arguments, model);
    if (!curves) return tl::unexpected(curves.error());
    std::string others;  // why a method with better figures was passed over
    for (const auto& best : expectations(*curves, rows, prompt_tokens)) {
        auto config = method_config(arguments, best.method, model);
        if (!config) {
            others += fmt::format("; {}: {}", best.method, config.error().message);
            continue;
        }
        if (without_budget(describe(*config)) != best.options) {
            others += fmt::format("; {} was measured with other options", best.method);
            continue;
        }
        // The bytes of the rows asked for, whatever type they are stored in.
        const auto heads = static_cast<double>(model.shape.layers * model.shape.kv_heads);
        const auto f16 = static_cast<double>(*row_bytes({}, model.head_dim_k, model.head_dim_v));
        config->budget = {Budget::Unit::bytes, std::floor(rows * heads * f16)};
        return ChosenMethod{best.method, std::move(*config),
                            expectation_text(best, *curves, rows) + others};
    }
    if (!others.empty()) return bad_input("--method auto found no method to use{}", others);
    return bad_input(
        "--method auto knows nothing of {:.4g} rows a head: every method needs at least {:.0f} by "
        "the "
        "curves of {}; give more, or name a method",
        rows, least_rows(*curves), curves->model);
}

}  // namespace headkv::cli
