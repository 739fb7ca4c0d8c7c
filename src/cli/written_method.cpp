// Methods with options of their own, as "headkv-r2:window=24:kv-type=q8_0".
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <system_error>
#include <utility>

#include "cli/numbers.h"
#include "cli/options.h"

namespace headkv::cli {

namespace {

template <class T>
Result<T> number_of(std::string_view text, std::string_view option) {
    const auto value = number<T>(text);
    return value ? Result<T>(*value) : bad_input("{}={} is no number", option, text);
}

// What every method takes besides the options of its steps.
constexpr std::array<std::string_view, 4> kOfAll = {"kv-type", "layout", "recall", "share"};

// Error (bad_input): an option that no step of the method reads; lists those that are read. An
// unknown method takes any: what is wrong with it is said elsewhere.
Result<void> check_known(const MethodArguments& arguments, std::string_view name) {
    if (!find_recipe(arguments.method)) return {};
    const auto recipe = method_recipe(arguments);
    if (!recipe) return tl::unexpected(recipe.error());
    auto known = option_names(*recipe);
    known.insert(known.end(), kOfAll.begin(), kOfAll.end());
    if (!recipe->score_kind.empty()) known.emplace_back("heads");
    if (std::find(known.begin(), known.end(), name) != known.end()) return {};
    return bad_input("{} has no option {}; it has {}", arguments.method, name,
                     fmt::join(known, ", "));
}

// "kernel=13".
Result<void> apply_option(MethodArguments& arguments, std::string_view option) {
    const std::size_t equals = option.find('=');
    const std::string_view name = option.substr(0, equals);
    const std::string text(equals == std::string_view::npos ? "" : option.substr(equals + 1));
    if (auto known = check_known(arguments, name); !known) return known;
    const std::array<std::pair<std::string_view, std::optional<std::int64_t>*>, 11> integers = {
        {{"window", &arguments.window},
         {"protect", &arguments.protect},
         {"skip-tail", &arguments.skip_tail},
         {"draft", &arguments.draft},
         {"kernel", &arguments.kernel},
         {"chunk-size", &arguments.chunk},
         {"cluster-size", &arguments.cluster_size},
         {"choice", &arguments.seed},
         {"sinks", &arguments.sinks},
         {"class-rows", &arguments.class_rows},
         {"reserve", &arguments.reserve}}};
    const std::array<std::pair<std::string_view, std::optional<double>*>, 10> reals = {
        {{"beta", &arguments.beta},
         {"pyramid-beta", &arguments.pyramid_beta},
         {"temperature", &arguments.temperature},
         {"mix", &arguments.mix},
         {"similarity", &arguments.similarity},
         {"frequent", &arguments.frequent},
         {"local", &arguments.local},
         {"recovery", &arguments.recovery},
         {"query-decay", &arguments.query_decay},
         {"floor", &arguments.floor}}};
    const std::array<std::pair<std::string_view, std::optional<std::string>*>, 13> names = {
        {{"allocate", &arguments.allocate},
         {"observe", &arguments.observe},
         {"unit", &arguments.unit},
         {"shrink", &arguments.shrink},
         {"pool", &arguments.pool},
         {"group-reduce", &arguments.group_reduce},
         {"normalize", &arguments.normalize},
         {"kv-type", &arguments.kv_type},
         {"layout", &arguments.layout},
         {"merge", &arguments.merge},
         {"positions", &arguments.positions},
         {"recall", &arguments.recall},
         {"share", &arguments.share}}};
    if (name == "heads") {
        arguments.heads = {text};
        return {};
    }
    for (const auto& [known, target] : integers) {
        if (known != name) continue;
        const auto value = number_of<std::int64_t>(text, name);
        if (!value) return tl::unexpected(value.error());
        *target = *value;
        return {};
    }
    for (const auto& [known, target] : reals) {
        if (known != name) continue;
        const auto value = number_of<double>(text, name);
        if (!value) return tl::unexpected(value.error());
        *target = *value;
        return {};
    }
    for (const auto& [known, target] : names) {
        if (known != name) continue;
        *target = text;
        return {};
    }
    return bad_input("option {} of {} is unknown", name, arguments.method);
}

// The options behind the name; a part without "=" goes on with the value of the one before it, as
// in "kv-type=q8_0:q4_0".
std::vector<std::string> split_options(std::string_view text) {
    std::vector<std::string> options;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find(':'), text.size());
        const std::string_view part = text.substr(0, end);
        if (part.find('=') == std::string_view::npos && !options.empty()) {
            options.back().append(":").append(part);
        } else if (!part.empty()) {
            options.emplace_back(part);
        }
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return options;
}

}  // namespace

Result<MethodArguments> written_method(const MethodArguments& arguments, std::string_view written) {
    MethodArguments own = arguments;
    const std::size_t colon = std::min(written.find(':'), written.size());
    own.method = written.substr(0, colon);
    auto options = split_options(written.substr(std::min(colon + 1, written.size())));
    // First, because which other options there are depends on it.
    std::stable_partition(options.begin(), options.end(), [](const std::string& option) {
        return option.starts_with("allocate=");
    });
    for (const auto& option : options) {
        if (auto applied = apply_option(own, option); !applied) {
            return tl::unexpected(applied.error());
        }
    }
    return own;
}

std::string method_title(std::string_view written, const StoreTypes& types) {
    std::string title(written);
    const bool said = written.find(":kv-type=") != std::string_view::npos;
    if (types != StoreTypes() && !said) title += ":kv-type=" + name_of(types);
    return title;
}

}  // namespace headkv::cli
