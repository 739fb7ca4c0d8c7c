// An evaluation of the real SmolLM2, end to end: your own questions and a generated task in one
// command. Skipped where the model is not there.
#include <fmt/format.h>

#include <tuple>

#include "cli/eval_program.h"

namespace headkv::test {
namespace {

using nlohmann::json;

class RealEvaluation : public Evaluations {};

TEST_F(RealEvaluation, Smollm2AnswersAndTheReportHoldsBothTasks) {
    const auto model = real_model(HEADKV_SOURCE_DIR);
    if (model.empty()) GTEST_SKIP() << "no model: set HEADKV_TEST_MODEL or run `make test` once";
    // Facts in front of a few other sentences: what so small a model still finds.
    const std::string other =
        " The river was high in the spring. The baker opened early, since the market was full of "
        "people from the villages around. In the evening the lamps were lit along the harbour, and "
        "the boats came home with the tide. Nobody had seen such weather for years.";
    std::string lines;
    for (const auto& [who, what, where] : {std::tuple{"Ada", "blue key", "third drawer"},
                                           {"Tom", "old map", "garden shed"},
                                           {"Mia", "red lamp", "wooden chest"}}) {
        const json line = {
            {"context", fmt::format("{0} keeps the {1} in the {2}.{3}", who, what, where, other)},
            {"question", fmt::format("Where does {} keep the {}?", who, what)},
            {"answers", {where}}};
        lines += line.dump() + '\n';
    }
    write_file(folder / "generate.jsonl", lines);
    const auto begin = std::chrono::steady_clock::now();
    const Ran ran = call({"eval",
                          "generate",
                          "needles",
                          "-m",
                          model.string(),
                          "--data",
                          path(""),
                          "-o",
                          path("o"),
                          "--tasks",
                          "single",
                          "--lengths",
                          "300",
                          "--depths",
                          "20,80",
                          "--samples",
                          "1",
                          "--metric",
                          "contains",
                          "-n",
                          "16",
                          "--methods",
                          "snapkv,streaming-llm",
                          "--rows",
                          "32,64"});
    expect_done(ran);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::minutes(2));
    const json generate = json::parse(read_file(folder / "o/generate/results.json"));
    ASSERT_EQ(generate.at("results").size(), 5U);
    EXPECT_GE(generate["results"][0].at("score"), 0.6) << ran.out;
    for (const json& row : generate["results"]) {
        EXPECT_EQ(row.at("n"), 3);
        EXPECT_LE(row.at("kv_bytes"), row.at("kv_bytes_full"));
    }
    EXPECT_LT(generate["results"][1].at("kv_bytes"), generate["results"][0].at("kv_bytes"));
    const json needles = json::parse(read_file(folder / "o/needles/results.json"));
    EXPECT_EQ(needles.at("examples"), 2);
    EXPECT_EQ(needles["results"][0].at("n"), 2);
    const std::string page = read_file(folder / "o/report.html");
    EXPECT_NE(page.find("task-generate"), std::string::npos);
    EXPECT_NE(page.find("data-chart=heat"), std::string::npos);
}

TEST_F(RealEvaluation, AFirstLineIsScoredWithoutItsNewline) {
    const auto model = real_model(HEADKV_SOURCE_DIR);
    if (model.empty()) GTEST_SKIP() << "no model: set HEADKV_TEST_MODEL or run `make test` once";
    write_file(folder / "data.jsonl",
               R"({"context":"Q: 1+1\nA: two\n\nQ: 1+2\nA: three\n\nQ: 2+2\nA: four\n\n",)"
               R"("question":"3+2","answers":["five"]})");
    const auto answer = [&](const std::string& out, const Arguments& more) {
        Arguments command = {
            "eval", "generate", "-m",        model.string(),  "--data", path("data.jsonl"),
            "-o",   path(out),  "--methods", "streaming-llm", "--rows", "16",
            "-n",   "8",        "--raw",     "--metric",      "exact"};
        command.insert(command.end(), more.begin(), more.end());
        expect_done(call(command));
        std::string log = read_file(folder / out / "answers.jsonl");
        return json::parse(log.substr(log.find('\n') + 1))["answers"][0]["answer"]
            .get<std::string>();
    };
    const std::string whole = answer("whole", {});
    const std::size_t newline = whole.find('\n', whole.find_first_not_of(" \n"));
    ASSERT_NE(newline, std::string::npos) << whole;
    EXPECT_EQ(answer("line", {"--first-line"}), whole.substr(0, newline));
}

}  // namespace
}  // namespace headkv::test
