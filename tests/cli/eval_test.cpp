// headkv eval generate on a tiny random model: results on disk, going on, and what is refused.
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace headkv::test {
namespace {

class Evaluation : public Program {
protected:
    void SetUp() override {
        Program::SetUp();
        std::string lines;
        for (const char digit : {'0', '1', '2', '3'}) {
            std::string line =
                R"({"context":"The fox hid the key under stone # and went home over the hill.",)"
                R"("question":"Where?","answers":["stone"]})";
            std::replace(line.begin(), line.end(), '#', digit);
            lines += line;
            lines += '\n';
        }
        lines += "{torn\n";
        write_file(folder / "data.jsonl", lines);
    }
    Ran generate(const std::vector<std::string>& more) {
        std::vector<std::string> command = {"eval",
                                            "generate",
                                            "-m",
                                            path("tiny.gguf"),
                                            "--data",
                                            path("data.jsonl"),
                                            "--raw",
                                            "-o",
                                            path("results"),
                                            "--methods",
                                            "snapkv",
                                            "-n",
                                            "3"};
        command.insert(command.end(), more.begin(), more.end());
        return call(command);
    }
};

TEST_F(Evaluation, WritesResultsAndGoesOn) {
    const Ran first = generate({"--rows", "20,40", "--limit", "2"});
    EXPECT_EQ(first.code, 0) << first.err;
    EXPECT_NE(first.err.find("line 5 is left out"), std::string::npos);
    EXPECT_NE(first.out.find("2 examples (1 left out)"), std::string::npos);
    const Ran second = generate({"--rows", "20,40", "--json", "-"});
    EXPECT_EQ(second.code, 0) << second.err;
    const auto json = nlohmann::json::parse(second.out);
    ASSERT_EQ(json.at("results").size(), 3U);  // full and two budgets; one group alone has no line
    EXPECT_EQ(json["results"][0].at("method"), "full");
    EXPECT_EQ(json["results"][2].at("rows"), 40);
    EXPECT_EQ(json["results"][2].at("n"), 4);
    EXPECT_EQ(json["skipped"].size(), 1U);
    EXPECT_EQ(json, nlohmann::json::parse(read_file(folder / "results/results.json")));
    // five lines: the settings, and each example once although two runs wrote them
    const std::string log = read_file(folder / "results/answers.jsonl");
    EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 5);
    const Ran anew = generate({"--rows", "20", "--query-aware", "no"});
    EXPECT_EQ(anew.code, 0) << anew.err;
    EXPECT_NE(anew.err.find("begun anew"), std::string::npos);
    EXPECT_NE(anew.out.find("compressed before the question"), std::string::npos);
}

// Results become curves, and curves a choice of method.
TEST_F(Evaluation, AutoTakesWhatTheCurvesPromiseMostOf) {
    expect_done(generate({"--rows", "20,30", "--methods", "streaming-llm"}));
    expect_done(call({"eval", "curves", path("results"), "-o", path("curves.json")}));
    const auto curves = nlohmann::json::parse(read_file(folder / "curves.json")).at("curves");
    ASSERT_EQ(curves.size(), 2U);
    // The better curve at 24 rows, read by hand.
    const double part = std::log(24 / 20.0) / std::log(30 / 20.0);
    std::map<double, std::string> at_24;
    for (const auto& curve : curves) {
        const auto& points = curve.at("points");
        ASSERT_EQ(points.size(), 2U);
        at_24[points[0]["dlogprob"].get<double>() * (1 - part) +
              points[1]["dlogprob"].get<double>() * part] = curve.at("method");
    }
    ASSERT_EQ(at_24.size(), 2U);
    const auto [expected, best] = *at_24.rbegin();

    const auto answer = [&](const Arguments& more) {
        Arguments arguments = {"-p",       std::string(60, 'a'),
                               "-n",       "2",
                               "--method", "auto",
                               "--curves", path("curves.json"),
                               "--json",   path("run.json")};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run(arguments);
    };
    const auto json = [&] { return nlohmann::json::parse(read_file(folder / "run.json")); };
    Ran ran = answer({"--rows", "24"});
    expect_done(ran);
    EXPECT_EQ(json().at("method"), best);
    EXPECT_NE(ran.err.find(fmt::format("{:+.3f} nats", expected)), std::string::npos) << ran.err;
    EXPECT_NE(ran.err.find("between 20 and 30 measured"), std::string::npos) << ran.err;
    // 3 layers of 2 heads of 16 + 16 dims
    EXPECT_EQ(json()["kv"]["bytes"], 24 * 3 * 2 * 32 * 2);

    const auto tokens = json().at("prompt_tokens").get<int>();
    ran = answer({"--rows", std::to_string(tokens)});
    expect_done(ran);
    EXPECT_EQ(json().at("method"), "full");
    expect_refused(answer({"--rows", "19"}), "at least 20");
    expect_refused(answer({"--rows", "24", "--kernel", "7"}), "measured with other options");
    expect_refused(run({"-p", "ab", "-n", "1", "--method", "auto", "--rows", "1"}), "--curves");
    expect_refused(call({"eval", "curves", path("data.jsonl"), "-o", path("c.json")}), "JSON");
    expect_refused(call({"bench", "-m", model(), "--methods", "auto"}), "one prompt");
}

TEST_F(Evaluation, RefusesWhatItCannotUse) {
    expect_refused(generate({"--metric", "bleu"}), "rouge-l");
    expect_refused(generate({"--metric", "labels"}), "babilong");
    expect_refused(generate({"--query-aware", "maybe"}), "--query-aware");
    expect_refused(generate({"--rows", "3"}), "16");
    expect_refused(generate({"--kv-bytes", "100K"}), "--rows");
    expect_refused(call({"eval", "babilong", "-m", path("tiny.gguf"), "--data", path("nowhere"),
                         "-o", path("results")}),
                   "tasks.json");
    write_file(folder / "data.jsonl", "{}\n");
    expect_refused(generate({}), "line 1");
    EXPECT_FALSE(std::filesystem::exists(folder / "results/results.json"));
}

TEST_F(Evaluation, DivergenceOfAText) {
    std::string text;
    for (int i = 0; i < 40; ++i) text += "The fox went over the hill and came back. ";
    write_file(folder / "text.txt", text);
    const auto kld = [&](const char* prefix, const char* tokens, const char* rows) {
        return call({"eval", "kld", "-m", model(), "--text", path("text.txt"), "--prefix", prefix,
                     "--tokens", tokens, "--methods", "snapkv", "--rows", rows, "--chunks", "2",
                     "--json", path("kld.json")});
    };
    const Ran ran = kld("60", "20", "20");
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_NE(ran.out.find("same best"), std::string::npos);
    const auto json = nlohmann::json::parse(read_file(folder / "kld.json"));
    ASSERT_EQ(json.at("results").size(), 2U);
    EXPECT_EQ(json["results"][0].at("divergence"), 0);
    EXPECT_EQ(json["results"][1].at("n"), 38);
    EXPECT_EQ(json["results"][1].at("same_best"), json["results"][1].at("score"));
    expect_refused(kld("100000", "20", "20"), "context");
    expect_refused(kld("60", "1", "20"), "at least 2");
    expect_refused(kld("60", "20", "2"), "window");
}

}  // namespace
}  // namespace headkv::test
