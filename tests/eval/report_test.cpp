#include "eval/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <set>

#include "eval/merge.h"
#include "eval/sample.h"
#include "support/tiny_model.h"

namespace headkv {
namespace {

using nlohmann::json;

std::vector<TaskExample> examples(const std::vector<std::pair<std::string, int>>& groups) {
    std::vector<TaskExample> all;
    for (const auto& [group, count] : groups) {
        for (int i = 0; i < count; ++i) {
            TaskExample example;
            example.id = group + std::to_string(i);
            example.group = group;
            all.push_back(std::move(example));
        }
    }
    return all;
}

std::vector<std::string> ids(const std::vector<TaskExample>& of) {
    std::vector<std::string> names;
    for (const TaskExample& example : of) names.push_back(example.id);
    return names;
}

TEST(Selection, ASampleHoldsEveryGroupAndIsPartOfALargerOne) {
    const auto all = examples({{"a", 50}, {"b", 3}, {"c", 1}});
    const auto few = ids(select_examples(all, {.sample = 2, .seed = 7}));
    EXPECT_EQ(few.size(), 5U);
    const auto more = ids(select_examples(all, {.sample = 10, .seed = 7}));
    EXPECT_EQ(more.size(), 14U);
    for (const std::string& id : few) {
        EXPECT_NE(std::find(more.begin(), more.end(), id), more.end()) << id;
    }
    EXPECT_NE(few, ids(select_examples(all, {.sample = 2, .seed = 8})));
    EXPECT_EQ(ids(select_examples(all, {.sample = 2, .limit = 3, .seed = 7})),
              std::vector<std::string>(few.begin(), few.begin() + 3));
}

TEST(Selection, ShardsAreTheWholeRun) {
    const auto all = examples({{"a", 7}, {"b", 4}});
    for (const std::int64_t of : {1, 2, 3, 11, 15}) {
        std::multiset<std::string> together;
        for (std::int64_t index = 1; index <= of; ++index) {
            const auto part = ids(shard_of(all, {index, of}));
            together.insert(part.begin(), part.end());
            EXPECT_LE(part.size(), 11U / static_cast<std::size_t>(of) + 1);
        }
        const auto whole = ids(all);
        EXPECT_EQ(together, std::multiset<std::string>(whole.begin(), whole.end()));
    }
    EXPECT_EQ(parse_shard("2/3")->index, 2);
    for (const char* bad : {"", "2", "0/3", "4/3", "1/0", "a/b", "1/2x", "-1/2", "1/"}) {
        EXPECT_FALSE(parse_shard(bad)) << bad;
    }
}

ReportHead made_up_head() {
    ReportHead head;
    head.task = "made-up";
    head.metric = "f1";
    head.model = "a, \"b\"";
    head.flags = {{"task", "made-up"}, {"seed", 1}};
    head.configs = {{"full", 0, "f16", "f16", nullptr},
                    {"snapkv", 64, "f16", "f16", json::object()},
                    {"headkv-r2", 64, "q8_0", "q4_0", json::object()}};
    return head;
}

TaskResult made_up(int number, const std::string& group, double full, double snap, double head) {
    TaskResult result;
    result.id = std::to_string(number);
    result.group = group;
    result.prompt_tokens = 10;
    result.seconds = 0.5;
    result.answers.push_back({"full", 0, "x", full, -0.5, 1000, 1000, 500, {}});
    result.answers.push_back({"snapkv", 64, "x", snap, -0.75, 100, 1000, 64, {}});
    result.answers.push_back({"headkv-r2", 64, "x", head, -0.6, 50, 1000, 64, {}});
    return result;
}

TEST(Report, DifferencesFromTheBaselineArePaired) {
    ReportHead head = made_up_head();
    head.baseline = "snapkv";
    std::vector<TaskResult> results;
    for (int i = 0; i < 20; ++i) {
        // Scores vary much from example to example, differences not at all.
        const double score = i % 2 == 0 ? 0.75 : 0.25;
        results.push_back(made_up(i, i < 5 ? "a" : "b", 1, score, score + 0.25));
    }
    const Report report = make_report(head, results);
    ASSERT_EQ(report.rows.size(), 9U);  // all, a and b
    EXPECT_EQ(report.examples, 20);
    EXPECT_FALSE(report.rows[0].dbaseline);
    EXPECT_FALSE(report.rows[1].dbaseline);
    ASSERT_TRUE(report.rows[2].dbaseline);
    EXPECT_DOUBLE_EQ(report.rows[2].dbaseline->value, 0.25);
    EXPECT_DOUBLE_EQ(report.rows[2].dbaseline->low, 0.25);
    EXPECT_DOUBLE_EQ(report.rows[2].dbaseline->high, 0.25);
    EXPECT_LT(report.rows[2].score.low, report.rows[2].score.high);
    ASSERT_TRUE(report.rows[5].dbaseline);
    EXPECT_EQ(report.rows[5].n, 5);

    EXPECT_TRUE(check_baseline("snapkv", head.configs));
    const auto unknown = check_baseline("h2o", head.configs);
    ASSERT_FALSE(unknown);
    EXPECT_NE(unknown.error().message.find("headkv-r2"), std::string::npos);
}

TEST(Report, LinesOfSingleQuestionsArePairedWithTheBaselinesToo) {
    ReportHead head = made_up_head();
    head.baseline = "snapkv";
    for (const std::string group : {"", "g"}) {
        std::vector<TaskResult> results;
        for (int i = 0; i < 4; ++i) {
            results.push_back(made_up(i, group, 1, 0.5, 0.625));
            const double score = i % 2 == 0 ? 0.75 : 0.25;
            for (TaskAnswer& answer : results.back().answers) {
                const bool mine = answer.method == "headkv-r2";
                answer.turns = {{"x", score + (mine ? 0.25 : 0), -1}, {"x", score, -1}};
            }
        }
        const Report report = make_report(head, results);
        ASSERT_EQ(report.rows.size(), 9U);  // all, and the two questions
        for (const auto& [row, difference] : {std::pair{2, 0.125}, {5, 0.25}, {8, 0.0}}) {
            const auto& one = report.rows[static_cast<std::size_t>(row)].dbaseline;
            ASSERT_TRUE(one) << row;
            EXPECT_DOUBLE_EQ(one->value, difference) << row;
            EXPECT_DOUBLE_EQ(one->high, difference) << row;
        }
        EXPECT_EQ(report.rows[8].group, group.empty() ? "turn 2" : "g/turn 2");
        EXPECT_FALSE(report.rows[7].dbaseline);  // the baseline itself
    }
}

TEST(Report, SkippedLinesOfOneReasonShareASentence) {
    const std::vector<SkippedLine> skipped = {
        {"a", 1, "torn"}, {"a", 4, "torn"}, {"a", 5, "no id"}, {"b", 5, "no id"}};
    EXPECT_EQ(
        sentences_of(skipped),
        (std::vector<std::string>{"a, 2 lines from 1 to 4 are left out: torn",
                                  "a, line 5 is left out: no id", "b, line 5 is left out: no id"}));
    EXPECT_TRUE(sentences_of({}).empty());
}

TEST(Report, OfPlainTextHasTheMeasuresOfText) {
    ReportHead head = made_up_head();
    head.baseline = "snapkv";
    std::vector<DivergenceChunk> chunks(2);
    for (std::int64_t i = 0; i < 2; ++i) {
        DivergenceChunk& chunk = chunks[static_cast<std::size_t>(i)];
        chunk.chunk = i;
        chunk.answers = {{"full", 0, {0, 0}, {1, 1}, {-1, -2}, 1000, 1000, 500},
                         {"snapkv", 64, {0.5, 1}, {1, 0}, {-2, -2}, 100, 1000, 64},
                         {"headkv-r2", 64, {0.25, 0}, {1, 1}, {-1, -3}, 50, 1000, 64}};
    }
    const Report report = make_report(head, chunks);
    ASSERT_EQ(report.rows.size(), 3U);
    EXPECT_EQ(report.examples, 2);
    const ReportRow& snapkv = report.rows[1];
    EXPECT_EQ(snapkv.n, 4);
    EXPECT_EQ(snapkv.score.value, 0.5);
    EXPECT_EQ(snapkv.dscore.value, -0.5);
    EXPECT_EQ(snapkv.dlog_probability.value, -0.5);
    EXPECT_EQ(snapkv.text->divergence.value, 0.75);
    EXPECT_NEAR(snapkv.text->perplexity, std::exp(2), 1e-12);
    EXPECT_EQ(report.rows[2].dbaseline->value, 0.5);
    const json whole = report_json(report);
    EXPECT_EQ(whole["results"][1]["divergence"], 0.75);
    EXPECT_NE(report_csv({&report, 1}).find(",0.75,0.75,0.75,1,7.38906\n"), std::string::npos)
        << report_csv({&report, 1});

    const Perplexity perplexity{20, 0.5, 510, 2};
    const Report alone = make_report(made_up_head(), perplexity);
    ASSERT_EQ(alone.rows.size(), 1U);
    EXPECT_EQ(alone.rows[0].method, "full");
    EXPECT_EQ(alone.rows[0].text->perplexity, 20);
    EXPECT_NEAR(alone.rows[0].score.high, 20.98, 1e-9);
}

TEST(Report, JsonAndCsvCarryTheSame) {
    ReportHead head = made_up_head();
    head.skipped.push_back({"data.jsonl", 3, "torn"});
    std::vector<TaskResult> results = {made_up(1, "", 1, 0.5, 0.75)};
    TaskResult skipped;
    skipped.id = "2";
    skipped.skipped = "too long";
    results.push_back(skipped);
    const Report report = make_report(head, results);
    const json whole = report_json(report);
    EXPECT_EQ(whole["examples"], 1);
    EXPECT_EQ(whole["skipped"].size(), 2U);
    ASSERT_EQ(whole["results"].size(), 3U);
    EXPECT_EQ(whole["results"][2]["type_v"], "q4_0");
    EXPECT_EQ(whole["results"][2]["score"], 0.75);
    const auto again = report_head_from_json(whole);
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_EQ(to_json(*again), to_json(report.head));
    EXPECT_FALSE(report_head_from_json(json::array()));

    const std::string csv = report_csv({&report, 1});
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 4);
    EXPECT_NE(csv.find("\"a, \"\"b\"\"\""), std::string::npos);
    EXPECT_NE(csv.find("made-up,,headkv-r2,64,q8_0,q4_0,f1,yes,1,0,0.75,"), std::string::npos)
        << csv;
    // as many fields in every line; the model's name holds one comma
    const auto commas = [](const std::string& line) {
        return std::count(line.begin(), line.end(), ',');
    };
    const std::string header = csv.substr(0, csv.find('\n'));
    const std::string last = csv.substr(csv.rfind("made-up"));
    EXPECT_EQ(commas(header) + 1, commas(last));
}

TEST(Report, MapsHoldMeansByLengthAndDepth) {
    std::vector<TaskResult> results;
    int number = 0;
    for (const std::int64_t length : {2000, 1000}) {
        for (const double depth : {90.0, 10.0}) {
            if (length == 2000 && depth > 50) continue;
            for (int i = 0; i < 2; ++i) {
                results.push_back(made_up(++number, "", 1, i, depth == 10 ? 1 : 0));
                results.back().length = length;
                results.back().depth = depth;
            }
        }
    }
    results.push_back(made_up(++number, "", 0, 0, 0));  // without a place: in no map
    const Report report = make_report(made_up_head(), results);
    ASSERT_EQ(report.maps.size(), 3U);
    const HeatMap& map = report.maps[2];
    EXPECT_EQ(map.lengths, (std::vector<std::int64_t>{1000, 2000}));
    EXPECT_EQ(map.depths, (std::vector<double>{10, 90}));
    ASSERT_EQ(map.cells.size(), 4U);
    EXPECT_EQ(map.cells[0].score, 1);  // 10 %, 1000
    EXPECT_EQ(map.cells[2].score, 0);  // 90 %, 1000
    EXPECT_EQ(map.cells[2].n, 2);
    EXPECT_EQ(map.cells[3].n, 0);  // never asked
    EXPECT_EQ(report.maps[1].cells[0].score, 0.5);
}

class Merging : public testing::Test {
protected:
    // Shards of a run of five examples, as `headkv eval` leaves them.
    void write_shard(const std::string& name, std::int64_t index, std::int64_t of,
                     const std::vector<int>& numbers, const json& more = json::object()) {
        ReportHead head = made_up_head();
        head.flags["shard"] = {
            {"index", index}, {"of", of}, {"examples", 5}, {"sample", 0}, {"limit", 0}};
        head.flags.update(more);
        std::vector<TaskResult> results;
        for (const int number : numbers) results.push_back(made_up(number, "", 1, 0.5, 0.25));
        const auto to = folder / name;
        std::filesystem::create_directories(to);
        std::ofstream(to / "results.json") << report_json(make_report(head, results)).dump(2);
        std::ofstream log(to / "answers.jsonl");
        log << json({{"format", "headkv-run/1"}, {"settings", head.flags}}).dump() << '\n';
        for (const TaskResult& result : results) log << to_json(result).dump() << '\n';
    }
    std::string refused(const std::vector<std::string>& names) {
        std::vector<std::filesystem::path> folders;
        for (const std::string& name : names) folders.push_back(folder / name);
        const auto merged = merge_shards(folders);
        EXPECT_FALSE(merged);
        return merged ? "" : merged.error().message;
    }
    test::TempFolder folder;
};

TEST_F(Merging, PutsTheOrderOfTheWholeRunTogether) {
    write_shard("a", 1, 2, {0, 2, 4});
    write_shard("b", 2, 2, {1, 3});
    const std::vector<std::filesystem::path> folders = {folder / "b", folder / "a"};
    const auto merged = merge_shards(folders);
    ASSERT_TRUE(merged) << merged.error().message;
    ASSERT_EQ(merged->results.size(), 5U);
    for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(merged->results[i].id, std::to_string(i));
    EXPECT_EQ(to_json(merged->head), to_json(made_up_head()));
    ASSERT_TRUE(write_log(folder / "whole.jsonl", *merged));
    std::ifstream in(folder / "whole.jsonl");
    std::string line;
    std::getline(in, line);
    EXPECT_EQ(json::parse(line)["settings"], made_up_head().flags);
}

TEST_F(Merging, SaysWhatIsWrong) {
    write_shard("a", 1, 2, {0, 2, 4});
    write_shard("b", 2, 2, {1, 3});
    write_shard("again", 2, 2, {1, 3});
    write_shard("seed", 2, 2, {1, 3}, {{"seed", 2}});
    write_shard("short", 2, 2, {1});
    write_shard("doubled", 2, 2, {1, 4});
    EXPECT_NE(refused({"a"}).find("shard 2/2 is missing"), std::string::npos);
    EXPECT_NE(refused({"a", "b", "again"}).find("both shard 2/2"), std::string::npos);
    const std::string seed = refused({"a", "seed"});
    EXPECT_NE(seed.find("/flags/seed: 1 and 2"), std::string::npos) << seed;
    EXPECT_NE(refused({"a", "short"}).find("1 of the 2 examples"), std::string::npos);
    EXPECT_NE(refused({"a", "doubled"}).find("example 4 is there twice"), std::string::npos);
    EXPECT_NE(refused({"a", "nowhere"}).find("results.json: is missing"), std::string::npos);
    std::ofstream(folder / "b" / "answers.jsonl", std::ios::app) << "{torn";
    EXPECT_NE(refused({"a", "b"}).find("line 4: torn"), std::string::npos);
    std::filesystem::remove(folder / "a" / "answers.jsonl");
    EXPECT_NE(refused({"a", "b"}).find("answers.jsonl: cannot be read"), std::string::npos);
}

}  // namespace
}  // namespace headkv
