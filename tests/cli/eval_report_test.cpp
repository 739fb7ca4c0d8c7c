// What an evaluation leaves: results.json, results.csv and report.html; shards and their merge.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <regex>

#include "cli/eval_program.h"

namespace headkv::test {
namespace {

using nlohmann::json;

class Reports : public Evaluations {};

TEST_F(Reports, ARunLeavesJsonCsvAndAPage) {
    write_questions(6, 2);
    const Ran ran = generate("whole", {"--methods", "snapkv,streaming-llm", "--rows", "20,40",
                                       "--baseline", "streaming-llm"});
    expect_done(ran);
    EXPECT_NE(ran.out.find("minus streaming-llm"), std::string::npos) << ran.out;
    const json results = json::parse(read_file(folder / "whole/results.json"));
    EXPECT_EQ(results.at("examples"), 6);
    ASSERT_EQ(results.at("results").size(), 15U);  // full and four others: all, and two groups
    for (const json& row : results["results"]) {
        EXPECT_EQ(row.at("n"), row.at("group").get<std::string>().empty() ? 6 : 3) << row.dump();
        EXPECT_EQ(row.at("fingerprint"), results["fingerprint"]);
        EXPECT_EQ(row.at("options").is_null(), row.at("method") == "full");
        EXPECT_EQ(row.contains("dbaseline"), row.at("method") == "snapkv");
        EXPECT_TRUE(row.contains("commit"));
        EXPECT_GT(row.at("kv_bytes"), 0);
        if (row["method"] != "full") {
            EXPECT_LE(row.at("rows_kept_mean"), row.at("rows"));
        }
    }
    const std::string csv = read_file(folder / "whole/results.csv");
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 16);
    const std::string page = read_file(folder / "whole/report.html");
    EXPECT_EQ(page.find("://"), std::string::npos);
    EXPECT_NE(page.find("n = 6, query-aware"), std::string::npos);
    expect_refused(generate("other", {"--baseline", "h2o"}), "--baseline h2o");
}

TEST_F(Reports, SeveralTasksHaveASubfolderEach) {
    write_questions(3, 1);
    std::filesystem::create_directories(folder / "data");
    std::filesystem::rename(folder / "data.jsonl", folder / "data/generate.jsonl");
    std::filesystem::create_directories(folder / "data/babilong");
    json tasks;
    tasks["tasks"]["qa1"] = {{"instruction", "Read."},
                             {"examples", "None."},
                             {"post_prompt", "Answer."},
                             {"labels", {"kitchen", "garden"}}};
    write_file(folder / "data/babilong/tasks.json", tasks.dump());
    write_file(folder / "data/babilong/0k.jsonl",
               R"({"task":"qa1","input":"Ada went to the kitchen.","question":"Where is Ada?",)"
               R"("target":"kitchen"})"
               "\n");
    const Arguments command = {"eval",      "generate",   "babilong", "-m",      model(),
                               "--data",    path("data"), "-o",       path("o"), "--methods",
                               "snapkv",    "--rows",     "20",       "--tasks", "qa1",
                               "--lengths", "0k"};
    const Ran ran = call(command);
    expect_done(ran);
    EXPECT_EQ(json::parse(read_file(folder / "o/generate/results.json")).at("examples"), 3);
    EXPECT_EQ(json::parse(read_file(folder / "o/babilong/results.json")).at("metric"), "labels");
    EXPECT_FALSE(std::filesystem::exists(folder / "o/results.json"));
    const std::string csv = read_file(folder / "o/results.csv");
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 5);
    EXPECT_NE(read_file(folder / "o/report.html").find("All tasks"), std::string::npos);

    Arguments twice = command;
    twice[2] = "generate";
    expect_refused(call(twice), "twice");
    twice[2] = "niah";
    expect_refused(call(twice), "by itself");
    twice[2] = "babylon";
    expect_refused(call(twice), "unknown task babylon");
    expect_refused(generate("x", {"--lengths", "4k"}), "--lengths is no option of eval generate");
}

TEST_F(Reports, AGeneratedTaskHasItsMaps) {
    const Ran ran = call(
        {"eval",   "needles",   "-m",        model(),    "-o",     path("n"),   "--tasks",
         "single", "--lengths", "900",       "--depths", "10,90",  "--samples", "2",
         "-n",     "2",         "--methods", "snapkv",   "--rows", "20",        "--query-aware",
         "no"});
    expect_done(ran);
    const json results = json::parse(read_file(folder / "n/results.json"));
    EXPECT_EQ(results.at("examples"), 4);
    EXPECT_EQ(results.at("query_aware"), false);
    for (const json& row : results.at("results")) {
        EXPECT_EQ(row.at("n"), row.at("group").get<std::string>().empty() ? 4 : 2) << row.dump();
    }
    EXPECT_NE(read_file(folder / "n/report.html").find("data-chart=heat"), std::string::npos);
    expect_refused(call({"eval", "needles", "-m", model(), "-o", path("x"), "--methods", "snapkv",
                         "--lengths", "1.5k"}),
                   "--lengths 1.5k");
    expect_refused(call({"eval", "needles", "-m", model(), "-o", path("x"), "--data", "d"}),
                   "--data is no option of eval needles");
    expect_refused(generate("x", {"--split", "final"}), "--split is no option of eval generate");
}

TEST_F(Reports, ASampleHoldsEveryGroup) {
    write_questions(8, 4);
    expect_done(generate("sample", {"--sample", "1"}));
    const json results = json::parse(read_file(folder / "sample/results.json"));
    EXPECT_EQ(results.at("examples"), 4);
    std::set<std::string> groups;
    for (const json& row : results["results"]) groups.insert(row.at("group"));
    EXPECT_EQ(groups.size(), 5U);  // and all of them
}

TEST_F(Reports, MergedShardsAreTheWholeRunByteForByte) {
    write_questions(7, 2);
    std::string data = read_file(folder / "data.jsonl");
    data += "{torn\n";
    write_file(folder / "data.jsonl", data);
    const Arguments options = {"--rows", "20,40", "--baseline", "snapkv"};
    expect_done(generate("whole", options));
    for (int index = 1; index <= 3; ++index) {
        Arguments more = options;
        more.insert(more.end(), {"--shard", fmt::format("{}/3", index)});
        expect_done(generate(fmt::format("part{}", index), more));
    }
    const Ran merged = call({"eval", "merge", path("part2"), path("part1"), path("part3"), "-o",
                             path("merged"), "--json", "-"});
    expect_done(merged);
    expect_same_results("whole", "merged");
    EXPECT_EQ(merged.out, read_file(folder / "merged/results.json"));

    expect_refused(call({"eval", "merge", path("part2"), path("part1"), "-o", path("m2")}),
                   "shard 3/3 is missing");
    expect_refused(call({"eval", "merge", path("part1"), "-o", path("part1")}),
                   "one of the shards");
    expect_refused(call({"eval", "merge", path("whole"), "-o", path("m2")}), "is no shard");
    expect_done(generate("other", {"--rows", "20", "--shard", "3/3"}));
    const Ran refused =
        call({"eval", "merge", path("part1"), path("part2"), path("other"), "-o", path("m2")});
    expect_refused(refused, "different runs: /");
    EXPECT_FALSE(std::filesystem::exists(folder / "m2"));
    expect_refused(generate("x", {"--shard", "4/3"}), "--shard 4/3");
    write_questions(7, 2);
    expect_refused(generate("x", {"--shard", "8/8"}), "fewer examples than shards");
}

TEST_F(Reports, ShardsOfNeedlesMergeToo) {
    const auto niah = [&](const std::string& out, const Arguments& more) {
        Arguments command = {"eval",      "niah",    "-m",       model(),     "-o",
                             path(out),   "-t",      "1",        "-n",        "2",
                             "--lengths", "100,200", "--depths", "10,90",     "--rows",
                             "20",        "--limit", "7",        "--methods", "snapkv"};
        command.insert(command.end(), more.begin(), more.end());
        return call(command);
    };
    expect_done(niah("whole", {}));
    expect_done(niah("part1", {"--shard", "1/2"}));
    expect_done(niah("part2", {"--shard", "2/2"}));
    const Ran merged =
        call({"eval", "merge", path("part2"), path("part1"), "-o", path("merged"), "--json", "-"});
    expect_done(merged);
    expect_same_results("whole", "merged");
    EXPECT_EQ(merged.out, read_file(folder / "merged/results.json"));
    const json results = json::parse(merged.out);
    EXPECT_EQ(results.at("examples"), 7);
    EXPECT_EQ(results.at("lengths"), json({100, 200}));
    expect_refused(niah("x", {"--shard", "3/2"}), "--shard 3/2");
    expect_refused(niah("x", {"--shard", "9/9"}), "fewer probes than shards");
}

TEST_F(Reports, TasksOnPlainTextGoOnAndLeaveTheSameFiles) {
    std::string text;
    for (int i = 0; i < 60; ++i) text += fmt::format("The fox went over hill {} and back. ", i);
    write_file(folder / "text.txt", text);
    const auto kld = [&](const std::string& out, const Arguments& more) {
        Arguments command = {"eval",       "kld",
                             "-m",         model(),
                             "--text",     path("text.txt"),
                             "-o",         path(out),
                             "-t",         "1",
                             "--prefix",   "60",
                             "--tokens",   "20",
                             "--methods",  "snapkv,streaming-llm",
                             "--rows",     "20,40",
                             "--baseline", "snapkv"};
        command.insert(command.end(), more.begin(), more.end());
        return call(command);
    };
    expect_done(kld("some", {"--chunks", "2"}));
    expect_done(kld("some", {"--chunks", "4"}));
    expect_done(kld("whole", {"--chunks", "4"}));
    expect_same_results("some", "whole");
    const json results = json::parse(read_file(folder / "whole/results.json"));
    EXPECT_EQ(results.at("examples"), 4);
    ASSERT_EQ(results.at("results").size(), 5U);
    for (const char* name : {"score", "divergence", "perplexity", "dbaseline", "commit"}) {
        EXPECT_TRUE(results["results"][3].contains(name)) << name;
    }
    EXPECT_TRUE(std::regex_match(results.at("commit").get<std::string>(),
                                 std::regex("[0-9a-f]{7,40}(-dirty)?|unknown")));
    const std::string page = read_file(folder / "whole/report.html");
    EXPECT_NE(page.find("data-chart=divergence"), std::string::npos);

    const auto ppl = [&](const std::string& out, const char* chunk) {
        return call({"eval", "ppl", "-m", model(), "--text", path("text.txt"), "-o", path(out),
                     "-t", "1", "--chunk", chunk});
    };
    expect_done(ppl("p", "100"));
    // A log that lost its last chunk is filled again.
    const std::string log = read_file(folder / "p/answers.jsonl");
    std::filesystem::create_directory(folder / "q");
    write_file(folder / "q/answers.jsonl", log.substr(0, log.size() - 9));
    expect_done(ppl("q", "100"));
    expect_same_results("p", "q");
    EXPECT_GT(json::parse(read_file(folder / "p/results.json")).at("perplexity"), 1);
    EXPECT_NE(ppl("p", "120").err.find("begun anew"), std::string::npos);
}

// --- in a browser

class InBrowser : public Evaluations {
protected:
    void SetUp() override {
        browser_ = find_browser();
        if (browser_.empty()) GTEST_SKIP() << "no chromium: the page is not looked at";
        Evaluations::SetUp();
    }
    // Chromium with `more` arguments on a page: what it prints, and its log on err.
    Ran open(const std::string& page, Arguments more) const {
        Arguments arguments = {"--headless",
                               "--no-sandbox",
                               "--disable-gpu",
                               "--disable-dev-shm-usage",
                               "--enable-logging=stderr",
                               "--user-data-dir=" + path("browser")};
        arguments.insert(arguments.end(), more.begin(), more.end());
        arguments.push_back("file://" + path(page));
        return run_program(browser_, arguments);
    }
    std::string browser_;
};

std::size_t count(const std::string& text, const std::string& part) {
    std::size_t found = 0;
    for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
        ++found;
    }
    return found;
}

TEST_F(InBrowser, ThePageHoldsItsChartsAndSaysNothingOnTheConsole) {
    const Ran ran = call({"eval", "niah", "-m", model(), "-o", path("niah"), "--lengths", "100,200",
                          "--depths", "10,90", "--limit", "8", "-n", "2", "--methods",
                          "snapkv,streaming-llm", "--rows", "20,40"});
    expect_done(ran);
    const Ran opened = open("niah/report.html", {"--dump-dom"});
    ASSERT_EQ(opened.code, 0) << opened.err;
    EXPECT_EQ(opened.err.find("CONSOLE"), std::string::npos) << opened.err;
    EXPECT_EQ(count(opened.out, "data-chart=\"score\""), 1U);
    EXPECT_EQ(count(opened.out, "data-chart=\"loss\""), 1U);
    EXPECT_EQ(count(opened.out, "data-chart=\"heat\""), 5U);  // full and four configurations
    EXPECT_EQ(count(opened.out, "class=\"w s0\""), 4U);       // two budgets in two charts
    EXPECT_EQ(count(opened.out, "class=\"w s1\""), 4U);
    EXPECT_EQ(count(opened.out, "<table"), 1U);
    EXPECT_NE(opened.out.find("</html>"), std::string::npos);
    // every figure says how many and by which protocol
    EXPECT_EQ(count(opened.out, "<figcaption>"), 7U);
    const std::regex said("<figcaption>[^<]*n = [0-9]+[^<]*query-aware[^<]*</figcaption>");
    EXPECT_EQ(std::distance(std::sregex_iterator(opened.out.begin(), opened.out.end(), said),
                            std::sregex_iterator()),
              7);
}

}  // namespace
}  // namespace headkv::test
