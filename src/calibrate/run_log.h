// A file that grows by one JSON line a finished piece of work, so that an interrupted run goes on
// from it. The first line holds the run's settings.
#pragma once

#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "headkv/error.h"

namespace headkv {

class RunLog {
public:
    enum class Start { fresh, resumed, settings_changed };

    // Goes on from `file` if its first line says the same `settings`; a torn last line (the run
    // was killed while it wrote) is cut off. A file with other settings is renamed to FILE.old and
    // a new one begun. Errors (bad_input): not writable, or a file that is no such log.
    static Result<RunLog> open(const std::filesystem::path& file, const nlohmann::json& settings);

    Start start() const { return start_; }
    const std::vector<nlohmann::json>& entries() const { return entries_; }  // of earlier runs

    // On disk when it returns. Error (failure): disk full.
    Result<void> append(const nlohmann::json& entry);
    void remove();  // the work is complete: closes and deletes the file

private:
    struct Close {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };
    RunLog() = default;

    std::filesystem::path path_;
    std::unique_ptr<std::FILE, Close> file_;
    Start start_ = Start::fresh;
    std::vector<nlohmann::json> entries_;
};

}  // namespace headkv
