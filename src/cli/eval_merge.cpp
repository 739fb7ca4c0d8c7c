// headkv eval merge: shards of one run put together again.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>

#include "cli/common.h"
#include "cli/eval_common.h"
#include "eval/merge.h"

namespace headkv::cli {
namespace {

struct MergeArguments {
    std::vector<std::string> folders;
    std::string out, json;
};

bool holds_results(const std::filesystem::path& folder) {
    std::error_code error;
    return std::filesystem::exists(folder / "results.json", error);
}

// Tasks of a run of several: its subfolders that hold results, by name; one empty name where the
// run is of one task.
std::set<std::string> tasks_of(std::span<const std::string> folders) {
    std::set<std::string> names;
    for (const std::filesystem::path folder : folders) {
        if (holds_results(folder)) return {""};
        std::error_code error;
        for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
            if (holds_results(entry.path())) names.insert(entry.path().filename().string());
        }
    }
    return names.empty() ? std::set<std::string>{""} : names;
}

struct MergedTask {
    Report report;
    nlohmann::json results;  // of results.json
};

Result<MergedTask> merge_task(const MergeArguments& arguments, const std::string& task) {
    const auto out = task.empty() ? std::filesystem::path(arguments.out)
                                  : std::filesystem::path(arguments.out) / task;
    std::vector<std::filesystem::path> folders;
    std::error_code error;
    for (const std::filesystem::path folder : arguments.folders) {
        folders.push_back(task.empty() ? folder : folder / task);
        if (std::filesystem::equivalent(folders.back(), out, error)) {
            return bad_input("-o {}: is one of the shards; give another folder", out.string());
        }
    }
    auto merged = merge_shards(folders);
    if (!merged) return tl::unexpected(merged.error());
    if (auto ready = prepare_output(out.string(), arguments.json); !ready) {
        return tl::unexpected(ready.error());
    }
    if (auto written = write_log(out / "answers.jsonl", *merged); !written) {
        return tl::unexpected(written.error());
    }
    MergedTask whole;
    if (merged->head.task == "niah") {
        auto report =
            write_niah(out.string(), std::move(merged->head), merged->probes, whole.results);
        if (!report) return tl::unexpected(report.error());
        whole.report = std::move(*report);
        return whole;
    }
    whole.report = make_report(std::move(merged->head), merged->results);
    whole.results = report_json(whole.report);
    if (auto written = write_report(out.string(), {&whole.report, 1}); !written) {
        return tl::unexpected(written.error());
    }
    return whole;
}

Result<void> merge(const MergeArguments& arguments) {
    const auto tasks = tasks_of(arguments.folders);
    std::vector<Report> reports;
    std::vector<nlohmann::json> results;
    for (const std::string& task : tasks) {
        auto whole = merge_task(arguments, task);
        if (!whole) return tl::unexpected(whole.error());
        if (arguments.json != "-") {
            if (auto shown = print(report_text(whole->report)); !shown) return shown;
        }
        reports.push_back(std::move(whole->report));
        results.push_back(std::move(whole->results));
    }
    if (!tasks.contains("")) {
        if (auto written = write_report(arguments.out, reports); !written) return written;
    }
    return write_results_json(arguments.json, results);
}

}  // namespace

void register_eval_merge(CLI::App& eval, Status& status) {
    auto arguments = std::make_shared<MergeArguments>();
    CLI::App& command = *eval.add_subcommand("merge", "one run out of its shards");
    command.add_option("folders", arguments->folders, "folders of all shards")
        ->required()
        ->type_name("FOLDER...");
    command.add_option("-o,--output", arguments->out, "folder of the whole run")
        ->required()
        ->type_name("FOLDER");
    command.add_option("--json", arguments->json, "results as JSON to a file, or - for stdout")
        ->type_name("FILE");
    command.callback([arguments, &status] {
        if (auto done = merge(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace headkv::cli
