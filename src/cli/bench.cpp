// `headkv bench`: speed and memory at given depths, methods and numbers of sequences.
#include "bench/bench.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "bench/machine.h"
#include "bench/peer.h"
#include "cli/all_methods.h"
#include "cli/bench_report.h"
#include "cli/options.h"
#include "cli/run_report.h"
#include "engine/capacity.h"

namespace headkv::cli {

namespace {

using Json = nlohmann::ordered_json;

struct BenchArguments {
    ModelArguments model;
    MethodArguments method;
    BenchSettings settings;
    std::vector<std::int64_t> depths = {0, 512, 4096}, slots = {1};
    std::vector<std::string> methods = {"full", "headkv-r2"};
    std::string json, csv, html, svg;
    std::optional<double> max_stall_ms;  // measure stalls, too
    std::string peer;                    // llama-bench
    bool probe = false;                  // measure the machine, too
};

Result<std::vector<BenchCase>> bench_cases(const BenchArguments& arguments,
                                           const ModelInfo& model) {
    std::vector<BenchCase> methods;
    for (const auto& written : arguments.methods) {
        auto config = method_config(arguments.method, written, model);
        if (!config) return tl::unexpected(config.error());
        auto title = method_title(written, config->store);
        methods.push_back({.method = std::move(*config), .name = std::move(title)});
    }
    std::vector<BenchCase> cases;
    for (const std::int64_t depth : arguments.depths) {
        for (const auto& method : methods) {
            for (const std::int64_t slots : arguments.slots) {
                BenchCase what = method;
                what.depth = depth;
                what.slots = slots;
                // A share of nothing is nothing: at depth 0 every method holds its one token.
                Budget& budget = what.method.budget;
                if (depth == 0 && budget.unit == Budget::Unit::share) budget.value = 1;
                cases.push_back(std::move(what));
            }
        }
    }
    return cases;
}

Json case_json(const BenchReport& report, std::size_t index) {
    const BenchResult& result = report.results[index];
    const SequenceId slots = result.what.slots;
    Json json{
        {"depth", result.what.depth},
        {"method", result.what.method.method},
        {"title", result.what.name},
        {"slots", slots},
        {"prompt_tokens", result.prompt_tokens},
        {"rows_kept_mean", number(result.rows_kept_mean)},
        {"prefill_tok_s", result.prefill_tok_s},
        {"decode_tok_s", result.decode_tok_s},
        {"prefill_ms", result.prefill_ms},
        {"compress_ms", result.compress_ms},
        {"decode_ms", result.decode_ms},
        {"kv_bytes", result.kv_bytes},
        {"kv_type_k", name_of(result.what.method.store.keys)},
        {"kv_type_v", name_of(result.what.method.store.values)},
        {"kv_bytes_full", result.kv_bytes_full},
        {"kv_bytes_allocated", result.allocated_bytes},
        {"prefill_scratch_bytes", result.scratch_bytes},
        {"rss_peak_bytes", result.rss_peak_bytes},
        {"device_peak_bytes", result.device_peak_bytes},
        {"first_token_ms", first_token_ms(report, result)},
        {"prefill_gflop_s", result.prefill_gflop_s},
        {"decode_gb_s", result.decode_gb_s},
        {"prefill_ratio", number(prefill_ratio(report, result))},
        {"decode_ratio", number(decode_ratio(report, result))},
        {"compress_share", result.prefill_ms > 0 ? result.compress_ms / result.prefill_ms : 0},
        {"overhead", nullptr},
        {"prefill_ms_all", result.prefill_ms_all},
        {"decode_ms_all", result.decode_ms_all}};
    if (!result.overhead_all.empty()) {
        json["overhead"] = {{"share", result.overhead},
                            {"share_all", result.overhead_all},
                            {"of", result.overhead_of}};
    }
    if (report.stalls.empty()) return json;
    const StallResult& stall = report.stalls[index];
    json["stall"] = {{"limit_ms", stall.limit_ms},       {"longest_ms", stall.longest_ms},
                     {"step_ms", stall.step_ms},         {"read_ms", stall.read_ms},
                     {"late_tokens", stall.late_tokens}, {"waits", stall.waits}};
    return json;
}

Json bench_json(const BenchArguments& arguments, const ModelInfo& model,
                const BenchReport& report) {
    Json json = {{"model", model_title(model)},
                 {"fingerprint", model.fingerprint},
                 {"version", version()},
                 {"device", model.device},
                 {"threads", model.threads},
                 {"precision", report.precision},
                 {"chunk", arguments.model.engine.chunk},
                 {"decode_tokens", arguments.settings.tokens},
                 {"repeats", arguments.settings.repeats},
                 {"seed", arguments.settings.seed},
                 {"weight_bytes", model.weight_bytes}};
    json["results"] = Json::array();
    for (std::size_t i = 0; i < report.results.size(); ++i) {
        json["results"].push_back(case_json(report, i));
    }
    if (report.machine) {
        json["machine"] = {{"read_gb_s", report.machine->read_gb_s},
                           {"copy_gb_s", report.machine->copy_gb_s},
                           {"f32_gflop_s", report.machine->f32_gflop_s},
                           {"bf16_gflop_s", report.machine->bf16_gflop_s}};
    }
    if (report.peer.empty()) return json;
    json["peer"] = Json::array();
    for (const auto& [key, speed] : report.peer) {
        json["peer"].push_back({{"depth", key.first},
                                {"slots", key.second},
                                {"prefill_tok_s_all", speed.prefill},
                                {"decode_tok_s_all", speed.decode}});
    }
    return json;
}

Result<void> check_arguments(const BenchArguments& arguments) {
    for (const auto& name : arguments.methods) {
        if (name == kAllMethods) continue;
        if (auto checked = check_method(arguments.method, name); !checked) return checked;
    }
    if (const auto budget = method_budget(arguments.method); !budget) {
        return tl::unexpected(budget.error());
    }
    for (const auto& file : {arguments.json, arguments.csv, arguments.html, arguments.svg}) {
        if (auto writable = check_output(file); !writable) return writable;
    }
    return {};
}

// The methods that "all" stands for, which depends on the model and on where it runs.
Result<void> list_methods(BenchArguments& arguments) {
    if (std::ranges::find(arguments.methods, kAllMethods) == arguments.methods.end()) return {};
    const auto info = read_model_info(arguments.model.path);
    if (!info) return tl::unexpected(info.error());
    const auto devices = limited_devices(arguments.model, *info);
    if (!devices) return tl::unexpected(devices.error());
    auto methods = with_all_methods(arguments.method, arguments.methods, *info, !devices->empty());
    if (!methods) return tl::unexpected(methods.error());
    arguments.methods = std::move(*methods);
    return {};
}

// A case that a device has no room for is said before the weights are read, not after an hour.
Result<void> check_cases(const BenchArguments& arguments) {
    const auto info = read_model_info(arguments.model.path);
    if (!info) return tl::unexpected(info.error());
    const auto devices = limited_devices(arguments.model, *info);
    if (!devices) return tl::unexpected(devices.error());
    if (devices->empty()) return {};
    const auto cases = bench_cases(arguments, *info);
    if (!cases) return tl::unexpected(cases.error());
    const auto slots = *std::max_element(arguments.slots.begin(), arguments.slots.end());
    for (const BenchCase& what : *cases) {
        DeviceLoad load{.methods = {what.method},
                        .prompt = std::max<std::int64_t>(1, what.depth),
                        .sequences = slots,
                        .new_tokens = arguments.settings.tokens + 1};
        const auto chunk = arguments.model.engine.chunk;
        if (chunk != EngineOptions().chunk) load.chunk = chunk;
        for (const auto& device : *devices) {
            load.part = device.part;
            auto fits = check_fits(*info, load, device.available, device.name);
            if (!fits) return fits;
        }
    }
    return {};
}

Result<void> measure_stalls(Engine& engine, const BenchArguments& arguments, BenchReport& report) {
    if (!arguments.max_stall_ms) return {};
    for (const BenchResult& result : report.results) {
        const auto stall =
            measure_stall(engine, result.what, arguments.settings.seed, *arguments.max_stall_ms);
        if (!stall) return tl::unexpected(stall.error());
        report.stalls.push_back(*stall);
    }
    return {};
}

Result<void> bench(BenchArguments& arguments) {
    if (auto checked = check_arguments(arguments); !checked) return checked;
    // The peer is looked at before the model is loaded: a wrong name is said at once.
    std::optional<LlamaBench> peer;
    if (!arguments.peer.empty()) {
        auto found =
            LlamaBench::create({arguments.peer, arguments.model.path, arguments.model.load.threads,
                                arguments.settings.tokens, [] { return interrupted(); }});
        if (!found) return tl::unexpected(found.error());
        peer.emplace(std::move(*found));
    }
    catch_interrupts();
    if (auto listed = list_methods(arguments); !listed) return listed;
    if (auto fits = check_cases(arguments); !fits) return fits;
    const auto model = load_model(arguments.model);
    if (!model) return tl::unexpected(model.error());
    const auto cases = bench_cases(arguments, (*model)->info());
    if (!cases) return tl::unexpected(cases.error());
    EngineOptions options = arguments.model.engine;
    options.slots = *std::max_element(arguments.slots.begin(), arguments.slots.end());
    const auto engine = Engine::create(*model, options);
    if (!engine) return tl::unexpected(engine.error());
    BenchReport report;
    report.model = model_title((*model)->info());
    report.threads = (*model)->info().threads;
    report.precision = arguments.model.engine.precision == Precision::exact ? "exact" : "fast";
    report.settings = arguments.settings;
    if (peer) peer->set_threads(report.threads);
    if (arguments.probe) report.machine = measure_machine(report.threads);
    const BenchRound beside = [&](std::int64_t) {
        return peer ? peer->round(arguments.depths, arguments.slots) : Result<void>();
    };
    ProgressBar bar("measuring");
    auto results = run_bench(**engine, *cases, arguments.settings, bar.callback(), beside);
    bar.clear();
    if (!results) return tl::unexpected(results.error());
    report.results = std::move(*results);
    if (peer) report.peer = peer->speeds();
    if (auto measured = measure_stalls(**engine, arguments, report); !measured) return measured;
    if (arguments.json != "-") {
        if (auto printed = print(bench_table(report)); !printed) return printed;
    }
    if (!arguments.csv.empty()) {
        if (auto done = write_output(arguments.csv, bench_csv(report)); !done) return done;
    }
    if (!arguments.html.empty()) {
        if (auto done = write_output(arguments.html, bench_page(report)); !done) return done;
    }
    if (!arguments.svg.empty()) {
        if (auto done = write_output(arguments.svg, bench_svg(report)); !done) return done;
    }
    if (arguments.json.empty()) return {};
    return write_output(arguments.json, dump(bench_json(arguments, (*model)->info(), report)));
}

}  // namespace

void register_bench(CLI::App& app, Status& status) {
    auto arguments = std::make_shared<BenchArguments>();
    CLI::App* command = app.add_subcommand("bench", "speed and memory at depths and methods");
    add_model_options(*command, arguments->model);
    const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
        return command->add_option(name, value, help)->capture_default_str()->type_name(type);
    };
    const auto list = [](CLI::Option* option) {
        option->delimiter(',')->allow_extra_args(false);
        return option;
    };
    list(add("--depth", arguments->depths, "prompt tokens before the decode", "N,..."))
        ->check(CLI::NonNegativeNumber);
    list(add("--methods", arguments->methods,
             "see `headkv methods`, all: every one; options of one: headkv-r2:kv-type=q8_0",
             "NAME,..."));
    list(add("--slots", arguments->slots, "sequences that decode together", "N,..."))
        ->check(CLI::PositiveNumber);
    add("-n,--tokens", arguments->settings.tokens, "decode steps measured", "N")
        ->check(CLI::PositiveNumber);
    add("--repeat", arguments->settings.repeats, "repeats; medians are printed", "R")
        ->check(CLI::PositiveNumber);
    add("--seed", arguments->settings.seed, "of the token ids", "N");
    add("--chunk", arguments->model.engine.chunk, "prompt tokens computed at once", "N")
        ->check(CLI::Range(1, 1 << 20));
    add_method_options(*command, arguments->method, false);
    command->add_option("--json", arguments->json, "figures as JSON; - is stdout")
        ->type_name("FILE");
    command->add_option("--csv", arguments->csv, "figures as CSV")->type_name("FILE");
    command->add_option("--html", arguments->html, "a page with charts of speed against depth")
        ->type_name("FILE");
    command->add_option("--svg", arguments->svg, "the chart of decoding alone, as a picture")
        ->type_name("FILE");
    command
        ->add_option("--max-stall-ms", arguments->max_stall_ms,
                     "measure how long answers stand still while one more prompt is read, if they "
                     "may for so long")
        ->type_name("MS")
        ->check(CLI::Range(0.001, 1e6));
    command
        ->add_option("--vs", arguments->peer,
                     "llama.cpp's llama-bench: measured in the same run, ratios printed")
        ->type_name("PROGRAM");
    command->add_flag("--machine", arguments->probe,
                      "measure memory and products first; show figures as shares of that");
    command->footer(
        "Example: headkv bench -m model.gguf --depth 0,4096 --methods full,headkv-r2 --rows 128");
    command->callback([arguments, &status] {
        if (const auto done = bench(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace headkv::cli
