#include "eval/longbench.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>

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

TEST_F(LongBench, AQuestionBehindTheContextLosesItsLabelAndTheLeadIn) {
    const auto one = split("s", "Read.\n\n{context}\n\nNow answer.\n\nQuestion: {input}\nAnswer:");
    EXPECT_EQ(one.context, "Read.\n\nText {input}.\n\nNow answer.");
    EXPECT_EQ(one.question, "Why?");
    // As question_prompt joins them without a chat template, this is the template to the letter.
    EXPECT_EQ(one.context + "\n\nQuestion: " + one.question + "\nAnswer:",
              "Read.\n\nText {input}.\n\nNow answer.\n\nQuestion: Why?\nAnswer:");
    EXPECT_FALSE(one.raw);
}

TEST_F(LongBench, OtherLabelsAndLeadInsGoTheSameWay) {
    const auto query = split("s", "T:\n{context}\n\nNow.\n\nQuery: {input}\n\nAnswer:");
    EXPECT_EQ(query.context, "T:\nText {input}.\n\nNow.");
    EXPECT_EQ(query.question, "Why?");
    const auto loogle = split("s", "Below. \n{context}\nQuestion: {input}\nAnswer:", row("Why? "));
    EXPECT_EQ(loogle.context, "Below. \nText {input}.");
    EXPECT_EQ(loogle.question, "Why?");
    const auto chinese = split("s", "阅读：{context}\n\n问题：{input}\n回答：");
    EXPECT_EQ(chinese.context, "阅读：Text {input}.");
    EXPECT_EQ(chinese.question, "Why?");
}

TEST_F(LongBench, AnInstructionBehindTheQuestionBelongsToIt) {
    json line = row();
    line["answers"] = {"Paragraph 1"};
    const auto one = split("s",
                           "Here.\n\n{context}\n\nAn abstract.\n\n{input}\n\nWhich? Like \"1\", "
                           "etc.\n\nThe answer is: ",
                           line, "retrieval");
    EXPECT_EQ(one.context, "Here.\n\nText {input}.\n\nAn abstract.");
    EXPECT_EQ(one.question, "Why?\n\nWhich? Like \"1\", etc.");
}

TEST_F(LongBench, WithoutAnInputTheInstructionAsks) {
    const auto one = split("s", "R:\n{context}\n\nNow, sum up.\n\nSummary:", row(""), "rouge_l");
    EXPECT_EQ(one.context, "R:\nText {input}.");
    EXPECT_EQ(one.question, "Now, sum up.");
    const auto lead = split("s", "R:\n{context}\n\n会议总结：", row(""), "rouge_l");
    EXPECT_EQ(lead.context, "R:\nText {input}.");
    EXPECT_EQ(lead.question, "会议总结：");
}

TEST_F(LongBench, AQuestionBeforeTheContextStaysThere) {
    const auto one = split("s", "Q: {input}\n{context}\n\nNow answer.\nAnswer:");
    EXPECT_EQ(one.context, "Q: Why?\nText {input}.");
    EXPECT_EQ(one.question, "Now answer.");
}

TEST_F(LongBench, PatternsToBeContinuedAreWholeAndRaw) {
    const auto shots = split("triviaqa", "Ex.\n\n{context}\n\n{input}", row("Q: x\nA: "));
    EXPECT_EQ(shots.context, "Ex.\n\nText {input}.\n\nQ: x\nA: ");
    EXPECT_EQ(shots.question, "");
    EXPECT_TRUE(shots.raw);
    const auto code = split("lcc", "Complete. \n{context}Next:\n", row(""), "code_sim");
    EXPECT_EQ(code.context, "Complete. \nText {input}.Next:\n");
    EXPECT_TRUE(code.raw);
    const auto both = split("repobench-p", "C\n{context}{input}Next:\n", row(""), "code_sim");
    EXPECT_EQ(both.context, "C\nText {input}.Next:\n");
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
    EXPECT_NE(refusal().find("tasks.json: is missing"), std::string::npos) << refusal();
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
    const auto refused = load_loogle(loogle);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("tasks.json: is missing"), std::string::npos);

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

// The real sets lie in the folder that HEADKV_TEST_DATA names, as longbench/ and loogle/.
TEST(RealData, HasEveryRowOfAllSets) {
    const char* const root = std::getenv("HEADKV_TEST_DATA");
    if (root == nullptr) GTEST_SKIP() << "HEADKV_TEST_DATA names no folder";
    const auto counts = [](const TaskData& data) {
        std::map<std::string, int> rows;
        for (const TaskExample& example : data.examples) {
            EXPECT_FALSE(example.context.empty()) << example.id;
            EXPECT_EQ(example.question.empty(), example.raw) << example.id;
            ++rows[example.group];
        }
        return rows;
    };
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
