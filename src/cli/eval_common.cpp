// What the evaluations have in common on the command line.
#include "cli/eval_common.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <system_error>
#include <utility>

#include "calibrate/haystack.h"
#include "cli/common.h"

namespace headkv::cli {
namespace {

std::vector<std::string> split(const std::vector<std::string>& lists, char separator) {
    std::vector<std::string> items;
    for (const std::string& list : lists) {
        std::size_t start = 0;
        while (start <= list.size()) {
            const std::size_t comma = std::min(list.find(separator, start), list.size());
            if (comma > start) items.push_back(list.substr(start, comma - start));
            start = comma + 1;
        }
    }
    return items;
}

template <class T>
Result<T> number(std::string_view text, std::string_view option) {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) {
        return bad_input("--methods: {}={} is no number", option, text);
    }
    return value;
}

// One option of one method, as in "headkv-r2:kernel=13".
Result<void> apply_option(MethodArguments& arguments, std::string_view option) {
    const std::size_t equals = option.find('=');
    const std::string_view name = option.substr(0, equals);
    const std::string text(equals == std::string_view::npos ? "" : option.substr(equals + 1));
    const std::array<std::pair<std::string_view, std::optional<std::int64_t>*>, 6> integers = {
        {{"window", &arguments.window},
         {"protect", &arguments.protect},
         {"observe", &arguments.observe},
         {"kernel", &arguments.kernel},
         {"sinks", &arguments.sinks},
         {"reserve", &arguments.reserve}}};
    const std::array<std::pair<std::string_view, std::optional<double>*>, 3> reals = {
        {{"beta", &arguments.beta},
         {"pyramid-beta", &arguments.pyramid_beta},
         {"floor", &arguments.floor}}};
    const std::array<std::pair<std::string_view, std::optional<std::string>*>, 3> names = {
        {{"pool", &arguments.pool},
         {"group-reduce", &arguments.group_reduce},
         {"normalize", &arguments.normalize}}};
    for (const auto& [known, target] : integers) {
        if (known != name) continue;
        const auto value = number<std::int64_t>(text, name);
        if (!value) return tl::unexpected(value.error());
        *target = *value;
        return {};
    }
    for (const auto& [known, target] : reals) {
        if (known != name) continue;
        const auto value = number<double>(text, name);
        if (!value) return tl::unexpected(value.error());
        *target = *value;
        return {};
    }
    for (const auto& [known, target] : names) {
        if (known != name) continue;
        *target = text;
        return {};
    }
    return bad_input(
        "--methods: option {} is unknown; known are window, protect, observe, kernel, sinks, "
        "reserve, beta, "
        "pyramid-beta, floor, normalize, pool, group-reduce",
        name);
}

nlohmann::json describe(const MethodConfig& config) {
    const MethodOptions& o = config.options;
    nlohmann::json json = {{"method", config.method},
                           {"rows", config.budget.value},
                           {"window", o.window},
                           {"protect", o.protect},
                           {"observe", o.observe},
                           {"kernel", o.kernel},
                           {"pool", o.pool == Pool::max ? "max" : "avg"},
                           {"beta", importance_beta(o, config.budget.value)},
                           {"pyramid_beta", o.pyramid_beta},
                           {"floor", o.floor},
                           {"normalize", o.normalize},
                           {"group_reduce", o.group_reduce == GroupReduce::mean ? "mean" : "max"},
                           {"sinks", o.sinks},
                           {"reserve", o.reserve}};
    if (config.scores) {
        std::string text;
        for (const double mean : config.scores->mean) text += fmt::format("{} ", mean);
        json["scores"] = {{"kind", config.scores->kind},
                          {"probes_passed", config.scores->probes_passed},
                          {"hash", fmt::format("{:016x}", hash_text(text))}};
    }
    return json;
}

}  // namespace

void add_comparison_options(CLI::App& command, std::vector<std::string>& methods,
                            MethodArguments& method) {
    command
        .add_option("--methods", methods,
                    "methods to compare with full; options of one: headkv-r2:window=24:kernel=13")
        ->delimiter(',')
        ->type_name("NAMES");
    add_method_options(command, method, false);
}

Result<std::vector<ConfigUnderTest>> configurations(const MethodArguments& method,
                                                    const std::vector<std::string>& methods,
                                                    const ModelInfo& info) {
    if (!method.bytes.empty() || !method.keep.empty()) {
        return bad_input("evaluations compare budgets in rows: give --rows, such as --rows 64,128");
    }
    std::vector<std::string> budgets = split(method.rows, ',');
    if (budgets.empty()) budgets = {"128"};
    std::vector<ConfigUnderTest> configs;
    for (const std::string& written : split(methods, ',')) {
        const std::vector<std::string> parts = split({written}, ':');
        if (parts.empty() || parts[0] == "full") continue;
        MethodArguments one = method;
        for (std::size_t i = 1; i < parts.size(); ++i) {
            if (auto applied = apply_option(one, parts[i]); !applied) {
                return tl::unexpected(applied.error());
            }
        }
        for (const std::string& rows : budgets) {
            one.rows = {rows};
            auto config = method_config(one, parts[0], info);
            if (!config) return tl::unexpected(config.error());
            // What no prompt could be read with is refused before the first one is.
            constexpr std::int64_t kLong = 1 << 20;
            const auto usable = Method::create(*config, info.shape, kLong, info.row_bytes);
            if (!usable) return tl::unexpected(usable.error());
            const double value = config->budget.value;
            configs.push_back({std::move(*config), written, value});
        }
    }
    return configs;
}

nlohmann::json describe(std::span<const ConfigUnderTest> configs) {
    nlohmann::json methods = nlohmann::json::array();
    for (const ConfigUnderTest& config : configs) methods.push_back(describe(config.method));
    return methods;
}

Result<void> prepare_output(const std::string& folder, const std::string& json) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) return bad_input("{}: {}", folder, error.message());
    return check_output(json);
}

void note_start(RunLog::Start start, const std::filesystem::path& log) {
    if (start != RunLog::Start::settings_changed) return;
    note(fmt::format("{} was of other settings: begun anew, the old one is now {}.old",
                     log.string(), log.string()));
}

nlohmann::json interval(const Estimate& estimate) {
    return nlohmann::json::array({estimate.low, estimate.high});
}

}  // namespace headkv::cli
