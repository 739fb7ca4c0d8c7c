// Work on a list of items whose results are kept in a log, so that a second call goes on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "calibrate/run_log.h"
#include "headkv/error.h"

namespace headkv {

template <class Outcome>
struct LoggedRun {
    std::vector<Outcome> results;  // in the order of the items
    RunLog::Start start = RunLog::Start::fresh;
    std::int64_t resumed = 0;  // results that an earlier run left
};

// How outcomes are written and found again.
template <class Outcome>
struct LogFormat {
    std::function<std::string(const Outcome&)> id_of;
    std::function<nlohmann::json(const Outcome&)> to_json;
    std::function<std::optional<Outcome>(const nlohmann::json&)> from_json;
};

// Runs what `log_file` does not hold yet; `id_of` an item is that of its outcome. Errors: the
// log's, the runner's, and interrupted (says how to go on) where `progress` returns false.
template <class Outcome, class Item>
Result<LoggedRun<Outcome>> run_logged(
    std::span<const Item> items, const std::function<std::string(const Item&)>& id_of,
    const std::function<Result<Outcome>(const Item&)>& runner, const LogFormat<Outcome>& format,
    const std::filesystem::path& log_file, const nlohmann::json& identity,
    const std::function<bool(std::int64_t done, std::int64_t total)>& progress) {
    auto log = RunLog::open(log_file, identity);
    if (!log) return tl::unexpected(log.error());
    std::unordered_map<std::string, Outcome> finished;
    for (const nlohmann::json& entry : log->entries()) {
        if (auto outcome = format.from_json(entry)) {
            auto id = format.id_of(*outcome);
            finished.emplace(std::move(id), std::move(*outcome));
        }
    }
    LoggedRun<Outcome> run;
    run.start = log->start();
    const auto done = [&] { return static_cast<std::int64_t>(run.results.size()); };
    const auto total = static_cast<std::int64_t>(items.size());
    const auto stopped = [&] {
        return tl::unexpected(
            Error{ErrorKind::interrupted,
                  fmt::format("interrupted after {} of {}; the same command goes on from {}",
                              done(), total, log_file.string())});
    };
    for (const Item& item : items) {
        if (const auto known = finished.find(id_of(item)); known != finished.end()) {
            run.results.push_back(known->second);
            ++run.resumed;
            continue;
        }
        if (progress && !progress(done(), total)) return stopped();
        auto outcome = runner(item);
        if (!outcome && outcome.error().kind == ErrorKind::interrupted) return stopped();
        if (!outcome) return tl::unexpected(outcome.error());
        if (auto written = log->append(format.to_json(*outcome)); !written) {
            return tl::unexpected(written.error());
        }
        run.results.push_back(std::move(*outcome));
    }
    return run;
}

}  // namespace headkv
