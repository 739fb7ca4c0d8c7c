#include "eval/longbench.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <tuple>

#include "support/tiny_model.h"

namespace headkv {
namespace {

using nlohmann::json;
using Sets = std::vector<std::string>;

json setting(const std::string& metric, const std::string& prompt) {
    return {{"metric", metric},
            {"max_new_tokens", 32},
            {"first_line_only", false},
            {"multi_answer", "max"},
            {"prompt", prompt}};
}

json row(const std::string& input = "Why?") {
    return {{"context", "Text {input}."}, {"input", input}, {"answers", {"Paragraph 1", "b"}}};
}

class LongBench : public testing::Test {
protected:
    void write(const std::string& name, const std::string& text) {
        std::ofstream(folder / name) << text;
    }
    void write_settings(const json& settings) { write("tasks.json", settings.dump()); }

    // The one example of a set of one line.
    TaskExample split(const std::string& set, const std::string& prompt, const json& line = row(),
                      const std::string& metric = "qa_f1") {
        write_settings({{set, setting(metric, prompt)}});
        write(set + ".jsonl", line.dump() + "\n");
        auto data = load_longbench(folder.path());
        if (!data || data->examples.size() != 1) {
            ADD_FAILURE() << (data ? "no example" : data.error().message);
            return {};
        }
        return data->examples[0];
    }

    std::string refusal(const Sets& sets = {}) {
        const auto data = load_longbench(folder.path(), sets);
        return data ? "loaded" : data.error().message;
    }

    test::TempFolder folder;
};

// The two parts of an example, and that they are the whole prompt: nothing is left out or added.
using Parts = std::pair<std::string, std::string>;
Parts parts(const TaskExample& example) {
    EXPECT_TRUE(example.verbatim);
    return {example.context, example.question};
}

TEST_F(LongBench, APromptIsCutBeforeTheLineOfTheQuestion) {
    EXPECT_EQ(parts(split("s", "Read.\n\n{context}\n\nNow answer.\n\nQuestion: {input}\nAnswer:")),
              Parts("Read.\n\nText {input}.\n\nNow answer.\n\n", "Question: Why?\nAnswer:"));
    EXPECT_EQ(parts(split("s", "T:\n{context}\n\nNow.\n\nQuery: {input}\n\nAnswer:")),
              Parts("T:\nText {input}.\n\nNow.\n\n", "Query: Why?\n\nAnswer:"));
    EXPECT_EQ(parts(split("s", "Below. \n{context}\nQuestion: {input}\nAnswer:", row("Why? "))),
              Parts("Below. \nText {input}.\n", "Question: Why? \nAnswer:"));
    EXPECT_EQ(parts(split("s", "阅读：{context}\n\n问题：{input}\n回答：")),
              Parts("阅读：Text {input}.\n\n", "问题：Why?\n回答："));
    json line = row();
    line["answers"] = {"Paragraph 1"};
    EXPECT_EQ(parts(split("s", "{context}\n\nAn abstract.\n\n{input}\n\nWhich?\n\nThe answer is: ",
                          line, "retrieval")),
              Parts("Text {input}.\n\nAn abstract.\n\n", "Why?\n\nWhich?\n\nThe answer is: "));
}

TEST_F(LongBench, WithoutAnInputTheInstructionAsks) {
    EXPECT_EQ(parts(split("s", "R:\n{context}\n\nNow, sum up.\n\nSummary:", row(""), "rouge_l")),
              Parts("R:\nText {input}.\n\n", "Now, sum up.\n\nSummary:"));
    EXPECT_EQ(parts(split("s", "R:\n{context}\n\n会议总结：", row(""), "rouge_l")),
              Parts("R:\nText {input}.\n\n", "会议总结："));
    EXPECT_EQ(parts(split("s", "R:\n{context}\n", row(""), "rouge_l")),
              Parts("R:\nText {input}.\n", ""));
}

TEST_F(LongBench, AQuestionBeforeTheContextStaysThere) {
    EXPECT_EQ(parts(split("s", "Q: {input}\n{context}\n\nNow answer.\nAnswer:")),
              Parts("Q: Why?\nText {input}.\n\n", "Now answer.\nAnswer:"));
}

TEST_F(LongBench, PatternsToBeContinuedAreInNoChatTemplate) {
    const auto shots = split("triviaqa", "Ex.\n\n{context}\n\n{input}", row("Q: x\nA: "));
    EXPECT_EQ(parts(shots), Parts("Ex.\n\nText {input}.\n\n", "Q: x\nA: "));
    EXPECT_TRUE(shots.raw);
    const auto code = split("lcc", "Complete. \n{context}Next:\n", row(""), "code_sim");
    EXPECT_EQ(parts(code), Parts("Complete. \nText {input}.", "Next:\n"));
    EXPECT_TRUE(code.raw);
    const std::string both = "C\n{context}{input}Next:\n";
    EXPECT_EQ(parts(split("repobench-p", both, row("f()\n"), "code_sim")),
              Parts("C\nText {input}.", "f()\nNext:\n"));
    EXPECT_EQ(parts(split("repobench-p", both, row(""), "code_sim")),
              Parts("C\nText {input}.", "Next:\n"));
    EXPECT_FALSE(split("hotpotqa", "{context}\n{input}").raw);
}

TEST_F(LongBench, AnExampleHasTheSettingsOfItsSet) {
    json about = setting("classification", "{context}\n{input}");
    about["max_new_tokens"] = 64;
    about["first_line_only"] = true;
    write_settings({{"trec", about}});
    json line = row();
    line["all_classes"] = {"Food", "Date"};
    line["_id"] = "x7";
    write("trec.jsonl", line.dump() + "\n");
    const auto data = load_longbench(folder.path());
    ASSERT_TRUE(data) << data.error().message;
    const TaskExample& one = data->examples.at(0);
    EXPECT_EQ(one.id, "trec/x7");
    EXPECT_EQ(one.group, "trec");
    EXPECT_EQ(one.metric, Metric::classification);
    EXPECT_EQ(one.max_tokens, 64);
    EXPECT_EQ(one.first_line, true);
    EXPECT_EQ(one.labels, (Sets{"Food", "Date"}));
    EXPECT_EQ(one.answers, (Sets{"Paragraph 1", "b"}));
}

TEST_F(LongBench, MetricsAreThoseOfTheBenchmark) {
    const std::string prompt = "{context}\n\nQuestion: {input}\nAnswer:";
    json line = row();
    line["answers"] = {"Paragraph 1"};
    line["all_classes"] = {"c"};
    for (const auto& [name, metric] : {std::pair{"qa_f1", Metric::f1},
                                       {"rouge_l", Metric::rouge_l_sets},
                                       {"classification", Metric::classification},
                                       {"retrieval", Metric::retrieval},
                                       {"retrieval_zh", Metric::retrieval},
                                       {"count", Metric::count},
                                       {"code_sim", Metric::code}}) {
        EXPECT_EQ(split("s", prompt, line, name).metric, metric) << name;
    }
}

TEST_F(LongBench, ChineseWordsAreNotScoredAndEveryLineSaysSo) {
    const std::string prompt = "{context}\n\nQuestion: {input}\nAnswer:";
    write_settings({{"zh", setting("qa_f1_zh", prompt)},
                    {"sum", setting("rouge_l_zh", prompt)},
                    {"en", setting("qa_f1", prompt)}});
    write("zh.jsonl", row().dump() + "\n" + row().dump() + "\n");
    write("sum.jsonl", row().dump() + "\n");
    write("en.jsonl", row().dump() + "\n");
    const auto data = load_longbench(folder.path());
    ASSERT_TRUE(data) << data.error().message;
    EXPECT_EQ(data->examples.size(), 1U);
    ASSERT_EQ(data->skipped.size(), 3U);
    for (const SkippedLine& line : data->skipped) {
        EXPECT_NE(line.reason.find("segmenter"), std::string::npos) << line.reason;
    }
    EXPECT_NE(refusal({"zh"}).find("zh is not scored: qa_f1_zh"), std::string::npos) << refusal();
}

TEST_F(LongBench, BadLinesAreSkippedWithNumberAndReason) {
    const std::string prompt = "{context}\n\nQuestion: {input}\nAnswer:";
    write_settings({{"s", setting("qa_f1", prompt)},
                    {"r", setting("retrieval", prompt)},
                    {"c", setting("classification", prompt)}});
    const auto with = [](const char* name, const json& value) {
        json line = row();
        line[name] = value;
        return line.dump() + "\n";
    };
    const auto without = [](const char* name) {
        json line = row();
        line.erase(name);
        return line.dump() + "\n";
    };
    write("s.jsonl", with("_id", "1") + "\n{torn\n[1]\n" + without("context") + with("context", 1) +
                         without("input") + without("answers") + with("answers", json::array()) +
                         with("answers", {""}) + with("answers", {1}) + with("answers", "b") +
                         with("context", "") + with("input", "") + with("_id", "1") + row().dump() +
                         "\r\n");
    write("r.jsonl", row().dump() + "\n" + with("answers", {"Paragraph 3"}));
    write("c.jsonl",
          row().dump() + "\n" + with("all_classes", nullptr) + with("all_classes", json::array()));
    const auto data = load_longbench(folder.path(), Sets{"s", "r", "c", "s"});
    ASSERT_TRUE(data) << data.error().message;
    std::vector<std::string> ids;
    for (const TaskExample& example : data->examples) ids.push_back(example.id);
    EXPECT_EQ(ids, (Sets{"s/1", "s/16", "r/2"}));
    const std::vector<std::pair<std::int64_t, std::string>> wanted = {
        {3, "no JSON object"},
        {4, "no JSON object"},
        {5, "no \"context\""},
        {6, "no \"context\""},
        {7, "no \"input\""},
        {8, "no \"answers\""},
        {9, "no \"answers\""},
        {10, "no \"answers\""},
        {11, "no \"answers\""},
        {12, "no \"answers\""},
        {13, "\"context\" is empty"},
        {14, "\"input\" is empty"},
        {15, "id s/1 was there before"},
        {1, "names no paragraph"},
        {1, "all_classes"},
        {2, "all_classes"},
        {3, "all_classes"}};
    ASSERT_EQ(data->skipped.size(), wanted.size());
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        const SkippedLine& line = data->skipped[i];
        EXPECT_EQ(line.file, i < 13 ? "s.jsonl" : i < 14 ? "r.jsonl" : "c.jsonl");
        EXPECT_EQ(line.line, wanted[i].first);
        EXPECT_NE(line.reason.find(wanted[i].second), std::string::npos) << line.reason;
    }
}

TEST_F(LongBench, MissingFilesAndUnknownSetsAreNamed) {
    EXPECT_NE(refusal().find("no SET.jsonl, JSON lines of {\"context\""), std::string::npos)
        << refusal();
    write("tasks.json", "[1");
    EXPECT_NE(refusal().find("tasks.json: is no JSON object"), std::string::npos) << refusal();
    write_settings({{"here", setting("qa_f1", "{context}{input}")},
                    {"gone", setting("qa_f1", "{context}{input}")}});
    EXPECT_NE(refusal().find("no SET.jsonl"), std::string::npos) << refusal();
    write("here.jsonl", row().dump() + "\n");
    EXPECT_EQ(refusal(), "loaded");
    EXPECT_NE(refusal({"gone"}).find("gone.jsonl: is missing"), std::string::npos);
    EXPECT_NE(refusal({"gone"}).find("\"answers\""), std::string::npos);
    const std::string unknown = refusal({"here", "elsewhere"});
    EXPECT_NE(unknown.find("knows no set elsewhere; it has gone, here"), std::string::npos)
        << unknown;
    write("here.jsonl", "\n\n");
    EXPECT_NE(refusal().find("holds no example"), std::string::npos) << refusal();
    write("here.jsonl", "\n{}\n");
    EXPECT_NE(refusal().find("here.jsonl, line 2: no \"context\""), std::string::npos) << refusal();
}

TEST_F(LongBench, SettingsThatCannotBeMeantAreErrors) {
    write("s.jsonl", row().dump() + "\n");
    const json good = setting("qa_f1", "{context}{input}");
    const auto with = [&](const char* name, const json& value) {
        json about = good;
        about[name] = value;
        write_settings({{"s", about}});
        return refusal();
    };
    EXPECT_EQ(with("metric", "qa_f1"), "loaded");
    EXPECT_NE(with("metric", "bleu").find("unknown metric bleu"), std::string::npos);
    EXPECT_NE(with("metric", 1).find("tasks.json: s: "), std::string::npos);
    EXPECT_NE(with("prompt", "{input}").find("no {context}"), std::string::npos);
    EXPECT_NE(with("prompt", nullptr).find("tasks.json: s: "), std::string::npos);
    EXPECT_NE(with("max_new_tokens", 0).find("max_new_tokens"), std::string::npos);
    EXPECT_NE(with("multi_answer", "mean").find("mean"), std::string::npos);
    EXPECT_NE(with("first_line_only", "no").find("tasks.json: s: "), std::string::npos);
    write_settings({{"s", 3}});
    EXPECT_NE(refusal().find("tasks.json: s: "), std::string::npos);
}

TEST(Loogle, FindsTheSettingsBesideAndTakesNothingElse) {
    const test::TempFolder top;
    const auto loogle = top / "loogle";
    const auto longbench = top / "longbench";
    std::filesystem::create_directory(loogle);
    std::filesystem::create_directory(longbench);
    std::ofstream(loogle / "computation.jsonl") << row().dump() << "\n";
    std::ofstream(loogle / "hotpotqa.jsonl") << row().dump() << "\n";
    std::ofstream(longbench / "computation.jsonl") << row().dump() << "\n";
    std::ofstream(longbench / "hotpotqa.jsonl") << row().dump() << "\n";
    json settings = {{"computation", setting("qa_f1", "{context}\nQuestion: {input}\nAnswer:")},
                     {"hotpotqa", setting("qa_f1", "{context}\nQuestion: {input}\nAnswer:")}};
    std::ofstream(longbench / "tasks.json") << settings.dump();
    const auto groups = [](const Result<TaskData>& data) {
        Sets names;
        if (data) {
            for (const TaskExample& example : data->examples) names.push_back(example.group);
        } else {
            names.push_back(data.error().message);
        }
        return names;
    };
    std::filesystem::remove(longbench / "tasks.json");
    EXPECT_EQ(groups(load_loogle(loogle)), (Sets{"computation"}));
    EXPECT_EQ(load_loogle(loogle)->examples.at(0).max_tokens, 32);
    std::ofstream(longbench / "tasks.json") << settings.dump();
    EXPECT_EQ(groups(load_loogle(loogle)), (Sets{"computation"}));
    EXPECT_EQ(groups(load_longbench(longbench)), (Sets{"hotpotqa"}));
    EXPECT_EQ(groups(load_longbench(longbench, Sets{"computation"})), (Sets{"computation"}));
    // Settings of its own come first.
    settings["computation"]["max_new_tokens"] = 7;
    std::ofstream(loogle / "tasks.json") << settings.dump();
    const auto own = load_loogle(loogle, Sets{"computation"});
    ASSERT_TRUE(own) << own.error().message;
    EXPECT_EQ(own->examples.at(0).max_tokens, 7);
}

TEST_F(LongBench, ItsOwnSettingsHoldWithoutAFileOfThem) {
    // As the benchmark has them (config/dataset2maxlen.json, eval.py): tokens, metric, first line.
    const std::map<std::string, std::tuple<int, std::string, bool>> wanted = {
        {"narrativeqa", {128, "qa_f1", false}},
        {"qasper", {128, "qa_f1", false}},
        {"multifieldqa_en", {64, "qa_f1", false}},
        {"multifieldqa_zh", {64, "qa_f1_zh", false}},
        {"hotpotqa", {32, "qa_f1", false}},
        {"2wikimqa", {32, "qa_f1", false}},
        {"musique", {32, "qa_f1", false}},
        {"dureader", {128, "rouge_l_zh", false}},
        {"gov_report", {512, "rouge_l", false}},
        {"qmsum", {512, "rouge_l", false}},
        {"multi_news", {512, "rouge_l", false}},
        {"vcsum", {512, "rouge_l_zh", false}},
        {"trec", {64, "classification", true}},
        {"triviaqa", {32, "qa_f1", true}},
        {"samsum", {128, "rouge_l", true}},
        {"lsht", {64, "classification", true}},
        {"passage_count", {32, "count", false}},
        {"passage_retrieval_en", {32, "retrieval", false}},
        {"passage_retrieval_zh", {32, "retrieval_zh", false}},
        {"lcc", {64, "code_sim", false}},
        {"repobench-p", {64, "code_sim", false}}};
    const json settings = longbench_settings();
    EXPECT_EQ(settings.size(), wanted.size() + 4);  // and LooGLE's
    for (const auto& [set, about] : wanted) {
        ASSERT_TRUE(settings.contains(set)) << set;
        EXPECT_EQ(std::tuple(settings[set]["max_new_tokens"].get<int>(),
                             settings[set]["metric"].get<std::string>(),
                             settings[set]["first_line_only"].get<bool>()),
                  about)
            << set;
    }
    write("trec.jsonl", json({{"context", "C"},
                              {"input", "Question: q\nType:"},
                              {"answers", {"Date"}},
                              {"all_classes", {"Date"}}})
                            .dump());
    const auto data = load_longbench(folder.path());
    ASSERT_TRUE(data) << data.error().message;
    EXPECT_EQ(parts(data->examples.at(0)),
              Parts("Please determine the type of the question below. Here are some examples of "
                    "questions.\n\nC\n",
                    "Question: q\nType:"));
    EXPECT_TRUE(data->examples[0].raw);
}

// The real sets lie in the folder that HEADKV_TEST_DATA names, as longbench/ and loogle/.
TEST(RealData, HasEveryRowOfAllSets) {
    const char* const root = std::getenv("HEADKV_TEST_DATA");
    if (root == nullptr) GTEST_SKIP() << "HEADKV_TEST_DATA names no folder";
    const auto counts = [](const TaskData& data) {
        std::map<std::string, int> rows;
        for (const TaskExample& example : data.examples) {
            EXPECT_FALSE(example.context.empty()) << example.id;
            EXPECT_FALSE(example.question.empty()) << example.id;
            ++rows[example.group];
        }
        return rows;
    };
    json settings;
    std::ifstream(std::filesystem::path(root) / "longbench/tasks.json") >> settings;
    EXPECT_EQ(longbench_settings(), settings);
    const auto longbench = load_longbench(std::filesystem::path(root) / "longbench");
    ASSERT_TRUE(longbench) << longbench.error().message;
    EXPECT_EQ(counts(*longbench), (std::map<std::string, int>{{"2wikimqa", 9},
                                                              {"gov_report", 8},
                                                              {"hotpotqa", 9},
                                                              {"lcc", 18},
                                                              {"lsht", 6},
                                                              {"multi_news", 40},
                                                              {"multifieldqa_en", 5},
                                                              {"musique", 5},
                                                              {"narrativeqa", 4},
                                                              {"passage_count", 3},
                                                              {"passage_retrieval_en", 10},
                                                              {"passage_retrieval_zh", 40},
                                                              {"qasper", 6},
                                                              {"qmsum", 4},
                                                              {"repobench-p", 16},
                                                              {"samsum", 10},
                                                              {"trec", 6},
                                                              {"triviaqa", 8}}));
    std::map<std::string, int> skipped;
    for (const SkippedLine& line : longbench->skipped) {
        EXPECT_NE(line.reason.find("is not scored"), std::string::npos) << line.reason;
        ++skipped[line.file];
    }
    EXPECT_EQ(skipped,
              (std::map<std::string, int>{
                  {"dureader.jsonl", 4}, {"multifieldqa_zh.jsonl", 40}, {"vcsum.jsonl", 4}}));

    const auto loogle = load_loogle(std::filesystem::path(root) / "loogle");
    ASSERT_TRUE(loogle) << loogle.error().message;
    EXPECT_TRUE(loogle->skipped.empty());
    EXPECT_EQ(counts(*loogle), (std::map<std::string, int>{{"comprehension_and_reasoning", 8},
                                                           {"computation", 8},
                                                           {"multiple_information_retrieval", 9},
                                                           {"timeline_reorder", 2}}));
    for (const TaskExample& example : loogle->examples) {
        const bool short_answer =
            example.group == "computation" || example.group == "timeline_reorder";
        EXPECT_EQ(example.max_tokens, short_answer ? 32 : 64) << example.id;
        EXPECT_EQ(example.metric, Metric::f1);
    }
}

}  // namespace
}  // namespace headkv
