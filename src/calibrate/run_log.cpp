#include "calibrate/run_log.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <system_error>

namespace headkv {
namespace {

constexpr const char* kFormat = "headkv-run/1";

// Whole lines of a log and how many bytes they take.
struct Content {
    std::vector<nlohmann::json> lines;
    std::uintmax_t bytes = 0;
};

// Stops at the first line that is torn or no JSON: what follows it cannot be trusted either.
Content read_lines(const std::filesystem::path& file) {
    std::ifstream in(file, std::ios::binary);
    Content content;
    std::string line;
    while (std::getline(in, line) && !in.eof()) {  // eof: no newline at the end
        auto json = nlohmann::json::parse(line, nullptr, false);
        if (json.is_discarded()) break;
        content.lines.push_back(std::move(json));
        content.bytes += line.size() + 1;
    }
    return content;
}

}  // namespace

Result<RunLog> RunLog::open(const std::filesystem::path& file, const nlohmann::json& settings) {
    const nlohmann::json header = {{"format", kFormat}, {"settings", settings}};
    RunLog log;
    log.path_ = file;
    std::error_code error;
    if (std::filesystem::exists(file, error)) {
        Content content = read_lines(file);
        const bool ours = !content.lines.empty() && content.lines[0].is_object() &&
                          content.lines[0].value("format", "") == kFormat;
        if (!ours && std::filesystem::file_size(file, error) > 0) {
            return bad_input("{}: exists and is no log of such a run; move it away", file.string());
        }
        if (ours && content.lines[0] == header) {
            std::filesystem::resize_file(file, content.bytes, error);
            if (error) return bad_input("{}: {}", file.string(), error.message());
            log.start_ = Start::resumed;
            content.lines.erase(content.lines.begin());
            log.entries_ = std::move(content.lines);
        } else if (ours) {
            auto old = file;
            old += ".old";
            std::filesystem::rename(file, old, error);
            if (error) return bad_input("{}: {}", file.string(), error.message());
            log.start_ = Start::settings_changed;
        }
    }
    log.file_.reset(std::fopen(file.c_str(), "ab"));
    if (!log.file_) return bad_input("{}: cannot write: {}", file.string(), std::strerror(errno));
    if (log.start_ != Start::resumed) {
        if (auto written = log.append(header); !written) return tl::unexpected(written.error());
    }
    return log;
}

Result<void> RunLog::append(const nlohmann::json& entry) {
    // Answers of a model may hold broken UTF-8; the log must not throw over it.
    const std::string line =
        entry.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n';
    if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() ||
        std::fflush(file_.get()) != 0) {
        return failure("{}: cannot write: {}", path_.string(), std::strerror(errno));
    }
    return {};
}

void RunLog::remove() {
    file_.reset();
    std::error_code error;
    std::filesystem::remove(path_, error);
}

}  // namespace headkv
