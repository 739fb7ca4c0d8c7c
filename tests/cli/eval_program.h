// Evaluations of the built program on a tiny model: questions, runs, and results without times.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "cli/program.h"

namespace headkv::test {

class Evaluations : public Program {
protected:
    // `count` questions of about 40 tokens in data.jsonl, dealt to `groups`.
    void write_questions(int count, int groups) const {
        std::string lines;
        for (int i = 0; i < count; ++i) {
            nlohmann::json line = {
                {"context", fmt::format("The fox hid key {} under the stone at home.", i)},
                {"question", "Where is it?"},
                {"answers", {"under the stone", "e"}},
                {"id", fmt::format("q{}", i)}};
            if (groups > 1) line["group"] = fmt::format("g{}", i % groups);
            lines += line.dump() + '\n';
        }
        write_file(folder / "data.jsonl", lines);
    }
    Arguments generate_command(const std::string& out, const Arguments& more) const {
        Arguments command = {"eval",     "generate", "-m", model(), "--data", path("data.jsonl"),
                             "-o",       path(out),  "-n", "3",     "-t",     "1",
                             "--metric", "contains"};
        command.insert(command.end(), more.begin(), more.end());
        // Others need head scores.
        if (std::ranges::find(more, "--methods") == more.end()) {
            command.insert(command.end(), {"--methods", "snapkv"});
        }
        return command;
    }
    Ran generate(const std::string& out, const Arguments& more) const {
        return call(generate_command(out, more));
    }

    // A file of a run without the times that it took.
    std::string without_times(const std::string& run, const char* file) const {
        static const std::regex seconds(R"("seconds": ?[-+0-9.e]+)");
        return std::regex_replace(read_file(folder / run / file), seconds, "\"seconds\":0");
    }
    void expect_same_results(const std::string& a, const std::string& b) const {
        for (const char* file : {"answers.jsonl", "results.json", "results.csv", "report.html"}) {
            EXPECT_FALSE(read_file(folder / a / file).empty()) << a << " " << file;
            EXPECT_TRUE(without_times(a, file) == without_times(b, file)) << b << " " << file;
        }
    }

    // Another program; its streams as call() gives them.
    Ran run_program(const std::string& program, const Arguments& arguments) const {
        std::vector<char*> words = {const_cast<char*>(program.c_str())};
        for (const std::string& word : arguments) words.push_back(const_cast<char*>(word.c_str()));
        words.push_back(nullptr);
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        const int write = O_WRONLY | O_CREAT | O_TRUNC;
        posix_spawn_file_actions_addopen(&actions, 1, path("out").c_str(), write, 0600);
        posix_spawn_file_actions_addopen(&actions, 2, path("err").c_str(), write, 0600);
        pid_t process = -1;
        const int failed =
            posix_spawn(&process, program.c_str(), &actions, nullptr, words.data(), environ);
        posix_spawn_file_actions_destroy(&actions);
        if (failed != 0) return {};
        return finish(process, path("out"), path("err"));
    }
    // The first of the usual names on the PATH; empty if there is none.
    static std::string find_browser() {
        const char* folders = std::getenv("PATH");
        std::string path = folders == nullptr ? "" : folders;
        for (std::size_t begin = 0; begin < path.size();) {
            const std::size_t end = std::min(path.find(':', begin), path.size());
            for (const char* name : {"chromium", "chromium-browser", "google-chrome"}) {
                const auto file = std::filesystem::path(path.substr(begin, end - begin)) / name;
                if (::access(file.c_str(), X_OK) == 0) return file.string();
            }
            begin = end + 1;
        }
        return "";
    }
};

}  // namespace headkv::test
