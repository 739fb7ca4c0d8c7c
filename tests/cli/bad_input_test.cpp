#include "cli/program.h"

namespace headkv::test {
namespace {

using BadInput = Program;
const std::vector<std::string> quick = {"-p", "hello", "-n", "2", "--method", "full"};

std::vector<std::string> operator+(std::vector<std::string> left,
                                   const std::vector<std::string>& right) {
    left.insert(left.end(), right.begin(), right.end());
    return left;
}

TEST_F(BadInput, Usage) {
    expect_refused(call({"rum"}), "did you mean run?");
    expect_refused(call({"run"}), "--model is required");
    expect_refused(run(quick + std::vector<std::string>{"--row", "3"}), "did you mean --rows?");
    expect_refused(run(quick + std::vector<std::string>{"leftover"}), "leftover");
    expect_refused(run(quick + std::vector<std::string>{"--top-p", "3"}), "--top-p");
    expect_refused(run(quick + std::vector<std::string>{"--temp", "warm"}), "--temp");
    expect_refused(run({"-n", "2"}), "there is no prompt");
    expect_refused(run({"-p", "x", "-q", "y"}), "excludes");
    expect_refused(run(quick + std::vector<std::string>{"--device", "abacus"}), "--device");
    const Ran nothing = call({});
    EXPECT_EQ(nothing.code, 2);
    EXPECT_NE(nothing.err.find("Usage"), std::string::npos);
}

TEST_F(BadInput, Models) {
    const auto with = [&](const std::string& file) {
        return call({"run", "-m", path(file), "--raw", "-p", "hello", "--method", "full"});
    };
    expect_refused(with("missing.gguf"), "missing.gguf");
    write_file(folder / "text.gguf", "this is no model at all, only some text");
    expect_refused(with("text.gguf"), "text.gguf");
    write_file(folder / "empty.gguf", "");
    expect_refused(with("empty.gguf"), "empty.gguf");
    expect_refused(with("."), "");
    const std::string whole = read_file(folder / "tiny.gguf");
    for (const std::size_t length :
         {std::size_t{3}, std::size_t{20}, std::size_t{900}, whole.size() / 2, whole.size() - 1}) {
        write_file(folder / "cut.gguf", whole.substr(0, length));
        expect_refused(with("cut.gguf"), "cut.gguf");
    }
}

TEST_F(BadInput, Methods) {
    const Ran ran = run({"-p", "x", "--method", "snapkb"});
    expect_refused(ran, "snapkv");
    expect_refused(run({"-p", "x", "--method", "full", "--compare", "snapkv,pyramid-kv"}),
                   "pyramidkv");
    expect_refused(run({"-p", "x", "--method", "snapkv", "--pool", "sum"}), "--pool");
    expect_refused(run({"-p", "x", "--method", "snapkv", "--kernel", "4"}), "kernel");
    expect_refused(run({"-p", "x", "--method", "snapkv", "--observe", "answer"}),
                   "--observe answer");
    expect_refused(run({"-p", "x", "--method", "snapkv", "--observe", "-3"}), "--observe -3");
    expect_refused(run({"-p", "x", "--method", "snapkv", "--skip-tail", "-1"}), "skip-tail is -1");
    for (const char* decay : {"0", "1.5", "-0.1", "nan"}) {
        expect_refused(run({"-p", "x", "--method", "snapkv", "--query-decay", decay}),
                       "query-decay is");
    }
    expect_refused(run({"-p", "x", "--method", "snapkv:query-decay=2"}), "query-decay is 2");
    expect_done(run({"-p", "x", "--method", "snapkv:query-decay=0.9", "-n", "1"}));
    for (const char* method : {"h2o", "tova", "kvzip", "streaming-llm"}) {
        expect_refused(run({"-p", "x", "--method", std::string(method) + ":query-decay=0.9"}),
                       "no option query-decay");
    }
    expect_refused(run({"-p", "x", "--method", "snapkv", "--unit", "page"}), "--unit page");
    expect_refused(run({"-p", "x", "--method", "headkv-r2", "--shrink", "2"}), "--shrink 2");
    expect_refused(run({"-p", "x", "--chat"}), "--raw");
}

TEST_F(BadInput, Budgets) {
    const auto with = [&](const std::vector<std::string>& budget) {
        return run(std::vector<std::string>{"-f", path("doc.txt"), "--method", "snapkv"} + budget);
    };
    expect_refused(with({"--rows", "20", "--keep", "5%"}), "the budget is given twice");
    expect_refused(with({"--rows", "20", "--rows", "30"}), "the budget is given twice");
    expect_refused(with({"--kv-bytes", "1M", "--keep", "5%"}), "the budget is given twice");
    expect_refused(with({"--rows", "many"}), "--rows many");
    expect_refused(with({"--rows", "-4"}), "--rows -4");
    expect_refused(with({"--keep", "0"}), "no share");
    expect_refused(with({"--keep", "150%"}), "no share");
    expect_refused(with({"--kv-bytes", "12X"}), "no size");
    expect_refused(with({"--rows", "3"}), "window");
}

TEST_F(BadInput, SpecialTokensAndAQuestionDoNotGoTogether) {
    expect_refused(run({"-f", path("doc.txt"), "-q", "Who?", "--raw", "--special"}), "--special");
}

TEST_F(BadInput, ABudgetAboveThePromptRunsAsFullAndSaysSo) {
    const Ran ran = run({"-f", path("doc.txt"), "-n", "2", "--method", "snapkv", "--rows", "5000"});
    expect_done(ran);
    EXPECT_NE(ran.err.find("nothing was thrown away"), std::string::npos) << ran.err;
}

TEST_F(BadInput, Documents) {
    const auto with = [&](const std::string& content) {
        write_file(folder / "bad.txt", content);
        return run({"-f", path("bad.txt"), "-q", "why?", "--method", "full"});
    };
    expect_refused(with(""), "is empty");
    expect_refused(with("\xEF\xBB\xBF"), "is empty");
    expect_refused(with(std::string("abc\0def", 7)), "byte 3 is NUL");
    expect_refused(with("caf\xE9 au lait"), "0xe9 at offset 3");
    expect_refused(with("ok \xE2\x82"), "offset 3");  // cut in the middle of a character
    expect_refused(with("\xC0\xAF"), "offset 0");     // overlong
    expect_refused(with("surrogate \xED\xA0\x80"), "offset 10");
    expect_refused(run({"-f", path("none.txt"), "-q", "why?"}), "none.txt");
    expect_refused(run({"-f", folder.path().string(), "-q", "why?"}), "it is a folder");
    expect_refused(run({"-p", "caf\xE9", "--method", "full"}), "offset 3");
}

TEST_F(BadInput, Outputs) {
    expect_refused(run(quick + std::vector<std::string>{"--json", path("no/such/folder.json")}),
                   "cannot write");
    expect_refused(run(quick + std::vector<std::string>{"--json", path("doc.txt") + "/a.json"}),
                   "cannot write");
    expect_refused(run(quick + std::vector<std::string>{"--json", folder.path().string()}),
                   "it is a folder");
}

TEST_F(BadInput, AFullDiskLeavesNothingBehind) {
    const auto before = files();
    Ran ran = run(quick + std::vector<std::string>{"--json", "/dev/full"});
    EXPECT_EQ(ran.code, 2);
    EXPECT_NE(ran.err.find("cannot write /dev/full: No space left"), std::string::npos) << ran.err;
    EXPECT_TRUE(std::filesystem::is_character_file("/dev/full"));
    // The answer itself does not fit: no endless generation into nowhere.
    const pid_t process =
        start({"run", "-m", model(), "--raw", "-p", "x", "--method", "full", "-n", "1000000"}, "",
              "/dev/full");
    ran = finish(process, path("err"), path("err"));
    EXPECT_EQ(ran.code, 2);
    EXPECT_NE(ran.err.find("standard output"), std::string::npos) << ran.err;
    const auto after = files();
    for (const auto& name : after) {
        const bool stream = name == "in" || name == "out" || name == "err";
        EXPECT_TRUE(stream || std::find(before.begin(), before.end(), name) != before.end())
            << name;
    }
}

TEST_F(BadInput, AFailedRunKeepsTheOldOutput) {
    write_file(folder / "old.json", "old");
    write_file(folder / "empty.txt", "");
    expect_refused(run({"-f", path("empty.txt"), "--method", "full", "--json", path("old.json")}),
                   "is empty");
    EXPECT_EQ(read_file(folder / "old.json"), "old");
}

TEST_F(BadInput, ALongPromptSaysByHowMuch) {
    std::string text;
    for (int i = 0; i < 900; ++i) text += "word " + std::to_string(i * 7919 % 1000) + ". ";
    write_file(folder / "long.txt", text);
    const std::vector<std::string> arguments = {"-f",       path("long.txt"), "-n",     "2",
                                                "--method", "full",           "--json", "-"};
    const Ran ran = run(arguments);
    expect_refused(ran, "--truncate middle");
    EXPECT_NE(ran.err.find("rope scaling"), std::string::npos);
    EXPECT_NE(ran.err.find("more than the model's context of 2048"), std::string::npos) << ran.err;
    const Ran cut = run(arguments + std::vector<std::string>{"--truncate", "middle"});
    expect_done(cut);
    EXPECT_LE(nlohmann::json::parse(cut.out)["prompt_tokens"], 2048 - 2);
}

TEST_F(BadInput, ScoresOfAnotherModel) {
    nlohmann::json scores = {{"format", "headkv-scores/1"},
                             {"kind", "r2"},
                             {"model",
                              {{"name", "other"},
                               {"architecture", "llama"},
                               {"layers", 3},
                               {"query_heads", 4},
                               {"kv_heads", 2},
                               {"fingerprint", "0123456789abcdef"}}},
                             {"probes", {{"tried", 1}, {"passed", 1}}},
                             {"settings", nlohmann::json::object()},
                             {"created_by", "a test"},
                             {"scores", {{1, 0, 2, 1}, {0, 0, 1, 3}, {1, 1, 1, 1}}}};
    const auto with = [&](const std::vector<std::string>& more) {
        write_file(folder / "scores.json", scores.dump());
        return run(std::vector<std::string>{"-f", path("doc.txt"), "-n", "2", "--rows", "20",
                                            "--method", "headkv-r2", "--heads",
                                            path("scores.json")} +
                   more);
    };
    expect_refused(with({}), "--force-scores");
    expect_done(with({"--force-scores"}));
    scores["model"]["layers"] = 2;
    scores["scores"].erase(2);
    expect_refused(with({"--force-scores"}), "2");
    write_file(folder / "scores.json", "{}");
    expect_refused(run({"-f", path("doc.txt"), "--heads", path("scores.json")}), "scores.json");
    // Without a file, and none known for this model: how to make one.
    expect_refused(run({"-f", path("doc.txt"), "--rows", "20"}), "headkv calibrate");
}

TEST_F(BadInput, ControlCKeepsWhatWasGenerated) {
    const pid_t process = start({"run", "-m", model(), "--raw", "-p", "hello there", "--method",
                                 "full", "-n", "100000000", "--json", path("run.json")});
    ASSERT_TRUE(wait_for([&] { return read_file(folder / "out").size() > 4; }));
    kill(process, SIGINT);
    const Ran ran = finish(process, path("out"), path("err"));
    EXPECT_EQ(ran.code, 130) << ran.err;
    const auto json = nlohmann::json::parse(read_file(folder / "run.json"));
    EXPECT_EQ(json["stop_reason"], "interrupted");
    EXPECT_EQ(json["text"].get<std::string>() + "\n", ran.out);
}

TEST_F(BadInput, ControlCWhileReadingStdin) {
    int pipe_ends[2];
    ASSERT_EQ(pipe(pipe_ends), 0);
    // A document from a terminal that never ends: the far end of the pipe stays open.
    const std::string input = "/dev/fd/" + std::to_string(pipe_ends[0]);
    const pid_t process = start({"run", "-m", model(), "--raw", "-f", input, "--method", "full"});
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    kill(process, SIGINT);
    EXPECT_EQ(finish(process, path("out"), path("err")).code, 130);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
}

}  // namespace
}  // namespace headkv::test
