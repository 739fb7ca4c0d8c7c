// Runs the built program as a user would: arguments in, exit status and both streams out.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "support/tiny_model.h"

namespace headkv::test {

struct Ran {
    int code = -1;  // exit status; 128 + signal if it was killed
    std::string out, err;
};

inline std::string read_file(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
}

inline void write_file(const std::filesystem::path& file, const std::string& text) {
    std::ofstream(file, std::ios::binary) << text;
}

// The program with a folder of its own that holds a tiny model and a document.
class Program : public testing::Test {
protected:
    using Arguments = std::vector<std::string>;

    void SetUp() override {
        write_tiny_model(TinyModel{}, folder / "tiny.gguf");
        write_file(folder / "doc.txt", "Ada keeps the blue key in the third drawer. ");
    }

    std::string path(const std::string& name) const { return (folder / name).string(); }
    std::string model() const { return path("tiny.gguf"); }

    // headkv run on the tiny model, which has no chat template, with `more` arguments.
    Ran run(Arguments more) const {
        Arguments arguments = {"run", "-m", model(), "--raw"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return call(arguments);
    }

    Ran call(const Arguments& arguments, const std::string& input = "") const {
        return finish(start(arguments, input), path("out"), path("err"));
    }

    // Starts the program; its streams go to files "out" (or `out`) and "err".
    pid_t start(const Arguments& arguments, const std::string& input = "",
                std::string out = "") const {
        write_file(folder / "in", input);
        if (out.empty()) out = path("out");
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        const int write = O_WRONLY | O_CREAT | O_TRUNC;
        posix_spawn_file_actions_addopen(&actions, 0, path("in").c_str(), O_RDONLY, 0);
        posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), write, 0600);
        posix_spawn_file_actions_addopen(&actions, 2, path("err").c_str(), write, 0600);
        std::string program = HEADKV_BINARY_DIR "/bin/headkv";
        Arguments owned = arguments;
        std::vector<char*> words = {program.data()};
        for (auto& word : owned) words.push_back(word.data());
        words.push_back(nullptr);
        pid_t process = -1;
        EXPECT_EQ(posix_spawn(&process, program.c_str(), &actions, nullptr, words.data(), environ),
                  0)
            << program;
        posix_spawn_file_actions_destroy(&actions);
        return process;
    }

    static Ran finish(pid_t process, const std::string& out, const std::string& err) {
        int status = 0;
        EXPECT_EQ(waitpid(process, &status, 0), process);
        const int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        return {code, read_file(out), read_file(err)};
    }

    // Waits for `ready`, at most a minute.
    static bool wait_for(const std::function<bool()>& ready) {
        for (int i = 0; i < 6000; ++i) {
            if (ready()) return true;
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
        return false;
    }

    // Bad input: exit 2, one line that says `says`, nothing on stdout.
    static void expect_refused(const Ran& ran, const std::string& says) {
        EXPECT_EQ(ran.code, 2) << ran.err;
        EXPECT_TRUE(ran.err.starts_with("headkv: ")) << ran.err;
        EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
        EXPECT_NE(ran.err.find(says), std::string::npos) << ran.err;
        EXPECT_EQ(ran.out, "");
    }

    static void expect_done(const Ran& ran) { EXPECT_EQ(ran.code, 0) << ran.err; }

    std::vector<std::string> files() const {
        std::vector<std::string> names;
        for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
            names.push_back(entry.path().filename().string());
        }
        std::sort(names.begin(), names.end());
        return names;
    }

    TempFolder folder;
};

}  // namespace headkv::test
