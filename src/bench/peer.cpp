#include "bench/peer.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>

extern char** environ;  // NOLINT: POSIX declares it nowhere

namespace headkv {

namespace {

std::string reason(int code) { return std::generic_category().message(code); }

std::string joined(const std::vector<std::int64_t>& values) {
    std::string text;
    for (const auto value : values) {
        if (!text.empty()) text += ',';
        text += std::to_string(value);
    }
    return text;
}

}  // namespace

Result<std::string> run_program(const std::vector<std::string>& arguments,
                                const std::function<bool()>& stopped) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) return failure("no pipe: {}", reason(errno));
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    std::vector<std::string> copies = arguments;
    std::vector<char*> pointers;
    pointers.reserve(copies.size() + 1);
    for (auto& copy : copies) pointers.push_back(copy.data());
    pointers.push_back(nullptr);
    pid_t child = 0;
    const int started =
        ::posix_spawn(&child, copies[0].c_str(), &actions, nullptr, pointers.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    std::string output;
    std::array<char, 1 << 14> block{};
    bool ended = false;  // by us
    while (started == 0) {
        constexpr int kAskedEvery = 200;  // ms
        pollfd waits{ends[0], POLLIN, 0};
        const int ready = ::poll(&waits, 1, kAskedEvery);
        if (!ended && stopped && stopped()) {
            ended = true;
            ::kill(child, SIGKILL);  // it has nothing to save
        }
        if (ready == 0 || (ready < 0 && errno == EINTR)) continue;
        const ssize_t count = ::read(ends[0], block.data(), block.size());
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) break;
        output.append(block.data(), static_cast<std::size_t>(count));
    }
    ::close(ends[0]);
    if (started != 0) return failure("cannot run {}: {}", arguments[0], reason(started));
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (ended) {
        return tl::unexpected(Error{ErrorKind::interrupted, arguments[0] + " was stopped"});
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return output;
    return failure("{} ended with {} {}", arguments[0], WIFEXITED(status) ? "status" : "signal",
                   WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

Result<LlamaBench> LlamaBench::create(const Settings& settings) {
    const auto help = run_program({settings.program, "--help"});
    if (!help || help->find("--n-gen") == std::string::npos) {
        return bad_input(
            "{} is no llama-bench{}: name the program of a llama.cpp build, such as "
            "llama.cpp/build/bin/llama-bench",
            settings.program, help ? "" : " (" + help.error().message + ")");
    }
    LlamaBench bench;
    bench.settings_ = settings;
    return bench;
}

Result<void> LlamaBench::round(const std::vector<std::int64_t>& depths,
                               const std::vector<std::int64_t>& slots) {
    for (const auto count : slots) {
        if (count == 1) {
            if (auto done = single(depths); !done) return done;
            continue;
        }
        for (const auto depth : depths) {
            if (auto done = batched(depth, count); !done) return done;
        }
    }
    return {};
}

Result<void> LlamaBench::single(const std::vector<std::int64_t>& depths) {
    const std::vector<std::string> common = {settings_.program,
                                             "-m",
                                             settings_.model,
                                             "-t",
                                             std::to_string(settings_.threads),
                                             "-fa",
                                             "1",
                                             "-r",
                                             "1",
                                             "-o",
                                             "json"};
    auto decode = common;
    const auto steps = std::to_string(settings_.tokens);
    decode.insert(decode.end(), {"-p", "0", "-n", steps, "-d", joined(depths)});
    std::vector<std::vector<std::string>> runs = {decode};
    std::vector<std::int64_t> prompts;
    std::copy_if(depths.begin(), depths.end(), std::back_inserter(prompts),
                 [](std::int64_t depth) { return depth > 0; });
    if (!prompts.empty()) {
        runs.push_back(common);
        runs.back().insert(runs.back().end(), {"-n", "0", "-p", joined(prompts)});
    }
    for (const auto& run : runs) {
        const auto output = run_program(run, settings_.stopped);
        if (!output) return tl::unexpected(output.error());
        const auto results = nlohmann::json::parse(*output, nullptr, false);
        if (!results.is_array()) return failure("{}: its output is no JSON", settings_.program);
        for (const auto& result : results) {
            const auto prompt = result.value("n_prompt", std::int64_t{0});
            const double speed = result.value("avg_ts", 0.0);
            if (prompt > 0) {
                speeds_[{prompt, 1}].prefill.push_back(speed);
            } else {
                speeds_[{result.value("n_depth", std::int64_t{0}), 1}].decode.push_back(speed);
            }
        }
    }
    return {};
}

Result<void> LlamaBench::batched(std::int64_t depth, std::int64_t slots) {
    const auto program =
        (std::filesystem::path(settings_.program).parent_path() / "llama-batched-bench").string();
    const auto prompt = std::max<std::int64_t>(depth, 1);
    const auto output =
        run_program({program, "-m", settings_.model, "-t", std::to_string(settings_.threads), "-fa",
                     "on", "-c", std::to_string(slots * (prompt + settings_.tokens + 8)), "-npp",
                     std::to_string(prompt), "-ntg", std::to_string(settings_.tokens), "-npl",
                     std::to_string(slots), "--output-format", "jsonl"},
                    settings_.stopped);
    if (!output) return tl::unexpected(output.error());
    std::istringstream lines(*output);
    for (std::string line; std::getline(lines, line);) {
        const auto result = nlohmann::json::parse(line, nullptr, false);
        if (!result.is_object() || !result.contains("speed_tg")) continue;
        auto& speed = speeds_[{depth, slots}];
        speed.decode.push_back(result.value("speed_tg", 0.0));
        if (depth > 0) speed.prefill.push_back(result.value("speed_pp", 0.0));
    }
    return {};
}

}  // namespace headkv
