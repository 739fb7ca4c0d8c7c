#include "eval/task.h"

#include <gtest/gtest.h>

#include <fstream>

#include "support/tiny_model.h"

namespace headkv {
namespace {

void write(const std::filesystem::path& file, const std::string& text) {
    std::ofstream(file) << text;
}

TaskResult made_up(const std::string& id, const std::string& group, double full, double mine) {
    TaskResult result;
    result.id = id;
    result.group = group;
    result.prompt_tokens = 10;
    result.answers.push_back({"full", 0, "f", full, -0.5, 1000, 1000, 500});
    result.answers.push_back({"snapkv", 64, "s\xff", mine, -0.75, 100, 1000, 64});
    return result;
}

TEST(Examples, BadLinesAreLeftOutAndNamed) {
    const test::TempFolder folder;
    write(folder / "data.jsonl",
          "{\"context\":\"c\",\"question\":\"q\",\"answers\":[\"a\",\"b\",\"\"]}\n"
          "\n"
          "{\"question\":\"q\",\"answer\":\"a\",\"id\":7,\"group\":\"g\"}\r\n"
          "{torn\n"
          "[1]\n"
          "{\"context\":\"c\",\"question\":\"q\"}\n"
          "{\"context\":1,\"question\":\"q\",\"answers\":[\"a\"]}\n"
          "{\"answers\":[\"a\"]}\n"
          "{\"question\":\"q\",\"answers\":[1]}\n"
          "{\"question\":\"q\",\"answer\":\"a\",\"id\":\"7\"}\n");
    const auto data = load_examples(folder / "data.jsonl");
    ASSERT_TRUE(data) << data.error().message;
    ASSERT_EQ(data->examples.size(), 2U);
    EXPECT_EQ(data->examples[0].id, "1");
    EXPECT_EQ(data->examples[0].answers, (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(data->examples[1].id, "7");
    EXPECT_EQ(data->examples[1].group, "g");
    std::vector<std::int64_t> lines;
    for (const auto& line : data->skipped) {
        lines.push_back(line.line);
        EXPECT_FALSE(line.reason.empty());
    }
    EXPECT_EQ(lines, (std::vector<std::int64_t>{4, 5, 6, 7, 8, 9, 10}));
}

TEST(Examples, AFileWithoutAnyIsAnErrorThatSaysWhatIsWanted) {
    const test::TempFolder folder;
    EXPECT_FALSE(load_examples(folder / "none.jsonl"));
    write(folder / "empty.jsonl", "\n\n");
    EXPECT_FALSE(load_examples(folder / "empty.jsonl"));
    write(folder / "bad.jsonl", "\n{}\n");
    const auto refused = load_examples(folder / "bad.jsonl");
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("line 2"), std::string::npos);
    EXPECT_NE(refused.error().message.find("\"answers\""), std::string::npos);
}

TEST(Babilong, TakesTheTasksAndLengthsAskedFor) {
    const test::TempFolder folder;
    EXPECT_NE(load_babilong(folder.path(), std::vector<std::string>{"qa1"},
                            std::vector<std::string>{"0k"})
                  .error()
                  .message.find("tasks.json"),
              std::string::npos);
    write(
        folder / "tasks.json",
        R"({"tasks":{"qa1":{"instruction":"I","examples":"E","post_prompt":"P","labels":["x"]}}})");
    write(folder / "0k.jsonl",
          "{\"task\":\"qa1\",\"index\":3,\"input\":\"in\",\"question\":\"Where? "
          "\",\"target\":\"x\"}\n"
          "{\"task\":\"qa2\",\"index\":3,\"input\":\"in\",\"question\":\"Where? "
          "\",\"target\":\"x\"}\n"
          "{\"task\":\"qa1\"}\n");
    const auto load = [&](const char* task, const char* length) {
        return load_babilong(folder.path(), std::vector<std::string>{task},
                             std::vector<std::string>{length});
    };
    const auto data = load("qa1", "0k");
    ASSERT_TRUE(data);
    ASSERT_EQ(data->examples.size(), 1U);
    EXPECT_EQ(data->examples[0].id, "qa1/0k/3");
    EXPECT_EQ(data->examples[0].context, "I\n\nE\n\nP\n\n<context>\nin\n</context>");
    EXPECT_EQ(data->examples[0].question, "Where?");
    EXPECT_EQ(data->skipped.size(), 1U);
    EXPECT_NE(load("qa9", "0k").error().message.find("qa9"), std::string::npos);
    EXPECT_NE(load("qa1", "1k").error().message.find("1k.jsonl"), std::string::npos);
}

TEST(Task, JsonRoundTrip) {
    const auto result = made_up("a", "g", 1, 0.5);
    const auto back = task_result_from_json(to_json(result));
    ASSERT_TRUE(back);
    EXPECT_EQ(to_json(*back), to_json(result));
    TaskResult skipped;
    skipped.id = "b";
    EXPECT_FALSE(task_result_from_json(to_json(skipped)));  // neither answers nor a reason
    skipped.skipped = "too long";
    EXPECT_TRUE(task_result_from_json(to_json(skipped)));
    EXPECT_FALSE(task_result_from_json({{"id", "c"}}));
}

TEST(Task, SummaryPairsWithFullAndLeavesSkippedOnesOut) {
    TaskResult skipped;
    skipped.id = "d";
    skipped.group = "h";
    skipped.skipped = "too long";
    const std::vector<TaskResult> results = {made_up("a", "g", 1, 0.5), made_up("b", "g", 0.5, 0.5),
                                             made_up("c", "h", 0.5, 1), skipped};
    const auto rows = summarize(results, 1);
    ASSERT_EQ(rows.size(), 6U);  // all, g and h, two methods each
    EXPECT_EQ(rows[1].group, "");
    EXPECT_EQ(rows[1].n, 3);
    EXPECT_NEAR(rows[1].score.value, 2.0 / 3, 1e-12);
    EXPECT_NEAR(rows[1].dscore.value, 0, 1e-12);
    EXPECT_NEAR(rows[1].share_of_full, 1, 1e-12);
    EXPECT_NEAR(rows[1].dlog_probability.value, -0.25, 1e-12);
    EXPECT_EQ(rows[3].group, "g");
    EXPECT_NEAR(rows[3].dscore.value, -0.25, 1e-12);
    EXPECT_NEAR(rows[3].share_of_full, 2.0 / 3, 1e-12);
    EXPECT_TRUE(summarize(std::vector{skipped}, 1).empty());
}

// Examples of one form of needle are drawn as one, so two forms give no narrower an interval than
// two examples do, however often each is asked for.
TEST(Task, IntervalsAreOverClusters) {
    const auto interval_of = [](int each, bool clustered) {
        std::vector<TaskResult> results;
        for (int i = 0; i < each; ++i) {
            for (const double mine : {0.0, 1.0}) {
                results.push_back(made_up(std::to_string(results.size()), "g", 1, mine));
                if (clustered) results.back().cluster = mine > 0 ? "good" : "bad";
            }
        }
        const auto rows = summarize(results, 1);
        EXPECT_NEAR(rows[1].score.value, 0.5, 1e-12);
        return rows[1].score.high - rows[1].score.low;
    };
    EXPECT_EQ(interval_of(1, true), 1);
    EXPECT_EQ(interval_of(50, true), 1);
    EXPECT_LT(interval_of(50, false), 0.25);
    TaskResult one = made_up("a", "g", 1, 0);
    one.cluster = "fact/3";
    EXPECT_EQ(task_result_from_json(to_json(one))->cluster, "fact/3");
}

// The engine on a random model: what answers hold, not whether they are right.
class TaskOnTinyModel : public testing::Test {
protected:
    void SetUp() override {
        test::TinyModel tiny;
        tiny.context = 600;
        write_tiny_model(tiny, folder_ / "m.gguf");
        model_ = Model::load(folder_ / "m.gguf").value();
        engine_ = Engine::create(model_).value();
        example_.id = "x";
        for (int i = 0; i < 60; ++i) example_.context += "word" + std::to_string(i) + ' ';
        example_.question = "Which word?";
        example_.answers = {"word7"};
        settings_.max_tokens = 5;
        MethodConfig snapkv;
        snapkv.method = "snapkv";
        snapkv.budget = {Budget::Unit::rows, 24};
        configs_.push_back({snapkv, "snapkv", 24});
    }
    test::TempFolder folder_;
    std::shared_ptr<const Model> model_;
    std::unique_ptr<Engine> engine_;
    TaskExample example_;
    TaskSettings settings_;
    std::vector<ConfigUnderTest> configs_;
};

TEST_F(TaskOnTinyModel, AsksWithAndWithoutTheQuestionInSight) {
    std::int64_t cut = -1;
    const auto aware = ask(*model_, example_, settings_, cut).value();
    EXPECT_EQ(cut, 0);
    EXPECT_EQ(aware.compressed, aware.prompt.size());
    settings_.query_aware = false;
    const auto blind = ask(*model_, example_, settings_, cut).value();
    EXPECT_EQ(blind.prompt, aware.prompt);
    ASSERT_LT(blind.compressed, blind.prompt.size());
    const auto tail = model_->tokenizer().decode(std::span(blind.prompt).subspan(blind.compressed));
    EXPECT_NE(tail.find("Which word?"), std::string::npos);
    EXPECT_EQ(tail.find("word59"), std::string::npos);
    example_.context.clear();
    EXPECT_FALSE(ask(*model_, example_, settings_, cut));
}

TEST_F(TaskOnTinyModel, CutsTheMiddleOfAPromptBeyondTheContextAndKeepsTheQuestion) {
    for (int i = 0; i < 300; ++i) example_.context += "more" + std::to_string(i) + ' ';
    for (const bool aware : {true, false}) {
        settings_.query_aware = aware;
        std::int64_t cut = 0;
        const auto asked = ask(*model_, example_, settings_, cut).value();
        EXPECT_GT(cut, 0);
        EXPECT_LE(asked.prompt.size() + 5, 600U);
        const auto text = model_->tokenizer().decode(asked.prompt);
        EXPECT_NE(text.find("word0"), std::string::npos);
        EXPECT_NE(text.find("Which word?"), std::string::npos);
        EXPECT_EQ(asked.compressed == asked.prompt.size(), aware);
    }
}

TEST_F(TaskOnTinyModel, AVerbatimPromptHasNothingAddedAndIsCutBetweenItsParts) {
    const Tokenizer& tokenizer = model_->tokenizer();
    example_.verbatim = true;
    example_.context += '\n';
    example_.question = "Type of one:";
    for (const bool aware : {true, false}) {
        settings_.query_aware = aware;
        std::int64_t cut = 0;
        const auto asked = ask(*model_, example_, settings_, cut).value();
        EXPECT_EQ(asked.prompt, tokenizer.encode(example_.context + example_.question));
        EXPECT_EQ(tokenizer.decode(asked.reference), " word7");
        const auto tail = tokenizer.decode(std::span(asked.prompt).subspan(asked.compressed));
        EXPECT_EQ(tail, aware ? "" : "Type of one:");
        // Behind white space an answer begins without a blank.
        example_.question += '\n';
        const auto line = ask(*model_, example_, settings_, cut).value();
        EXPECT_EQ(tokenizer.decode(line.reference), "word7");
        example_.question.pop_back();
    }
    example_.question.clear();
    EXPECT_FALSE(ask(*model_, example_, settings_, settings_.limit));
}

TEST(FirstLine, EndsBeforeTheNewlineBehindSomething) {
    for (const auto& [text, line] : {std::pair{"", ""},
                                     {"Date", "Date"},
                                     {" Date\n\nQuestion", " Date"},
                                     {"\n \nDate\nx", "\n \nDate"},
                                     {" \n\n", " \n\n"}}) {
        EXPECT_EQ(first_line(text), line);
    }
}

TEST_F(TaskOnTinyModel, OnePrefillAnswersForAllAndLeavesNoSequenceBehind) {
    for (const bool aware : {true, false}) {
        settings_.query_aware = aware;
        const auto result = run_example(*engine_, example_, configs_, settings_);
        ASSERT_TRUE(result) << result.error().message;
        ASSERT_EQ(result->answers.size(), 2U);
        EXPECT_EQ(result->answers[0].method, "full");
        EXPECT_EQ(result->answers[0].kv_bytes, result->answers[0].kv_bytes_full);
        EXPECT_LT(result->answers[1].kv_bytes, result->answers[1].kv_bytes_full);
        EXPECT_DOUBLE_EQ(result->answers[1].rows_kept, 24);
        EXPECT_LT(result->answers[1].log_probability, 0);
    }
    // A budget above the prompt runs as full: the same answer, the same probability.
    configs_[0].method.budget.value = 10000;
    const auto result = run_example(*engine_, example_, configs_, settings_).value();
    EXPECT_EQ(result.answers[1].text, result.answers[0].text);
    EXPECT_DOUBLE_EQ(result.answers[1].log_probability, result.answers[0].log_probability);
}

TEST_F(TaskOnTinyModel, MarkedPartsStayInEveryHeadAndTheMarksAreNoText) {
    std::int64_t cut = 0;
    const auto plain = ask(*model_, example_, settings_, cut).value();
    EXPECT_TRUE(plain.keep.empty());
    settings_.keep.marks = true;
    EXPECT_EQ(ask(*model_, example_, settings_, cut)->prompt, plain.prompt);
    const std::string part = "word30 word31";
    const auto at = example_.context.find(part);
    example_.context.insert(at + part.size(), "</keep>").insert(at, "<keep>");
    const auto text_of = [&](const Asked& asked, const PositionSpan& span) {
        return model_->tokenizer().decode(
            std::span(asked.prompt)
                .subspan(static_cast<std::size_t>(span.begin),
                         static_cast<std::size_t>(span.end - span.begin)));
    };
    for (const bool aware : {true, false}) {
        settings_.query_aware = aware;
        const auto asked = ask(*model_, example_, settings_, cut).value();
        EXPECT_EQ(asked.prompt, plain.prompt);
        ASSERT_EQ(asked.keep.size(), 1U);
        EXPECT_NE(text_of(asked, asked.keep[0]).find(part), std::string::npos);
        EXPECT_LE(text_of(asked, asked.keep[0]).size(), part.size() + 2);

        // A budget below window and part leaves the example out and says why.
        const auto refused = run_example(*engine_, example_, configs_, settings_).value();
        EXPECT_TRUE(refused.answers.empty());
        EXPECT_TRUE(refused.skipped.starts_with("x: a budget of 24 rows")) << refused.skipped;
        EXPECT_NE(refused.skipped.find("marked to be kept"), std::string::npos);
        configs_[0].method.budget.value = 40;
        const auto result = run_example(*engine_, example_, configs_, settings_).value();
        ASSERT_EQ(result.answers.size(), 2U) << result.skipped;
        EXPECT_DOUBLE_EQ(result.answers[1].rows_kept, 40);
        configs_[0].method.budget.value = 24;
    }
    // A question that is read behind the compressed context has no rows among those chosen.
    example_.question = "Which <keep>word</keep>?";
    EXPECT_NE(ask(*model_, example_, settings_, cut).error().message.find("--query-aware"),
              std::string::npos);
    settings_.query_aware = true;
    const auto both = ask(*model_, example_, settings_, cut).value();
    EXPECT_EQ(both.prompt, plain.prompt);
    ASSERT_EQ(both.keep.size(), 2U);
    EXPECT_NE(text_of(both, both.keep[1]).find("word"), std::string::npos);
    EXPECT_EQ(both.question, plain.question);

    example_.question = "Which <keep>word?";
    const auto torn = run_example(*engine_, example_, configs_, settings_).value();
    EXPECT_NE(torn.skipped.find("x: its question, line 1 has <keep>"), std::string::npos);
    settings_.keep.marks = false;
    const auto as_text = ask(*model_, example_, settings_, cut).value();
    EXPECT_NE(model_->tokenizer().decode(as_text.prompt).find("<keep>"), std::string::npos);
    EXPECT_TRUE(as_text.keep.empty());
}

TEST_F(TaskOnTinyModel, TheSystemPartStaysWhereThereIsATemplate) {
    settings_.chat = chat_template_by_name("chatml").value();
    settings_.system = "Be terse.";
    std::int64_t cut = 0;
    const auto plain = ask(*model_, example_, settings_, cut).value();
    settings_.keep.system = true;
    const auto asked = ask(*model_, example_, settings_, cut).value();
    EXPECT_EQ(asked.prompt, plain.prompt);
    ASSERT_EQ(asked.keep.size(), 1U);
    EXPECT_EQ(asked.keep[0].begin, 0);
    const auto part = std::span(asked.prompt).first(static_cast<std::size_t>(asked.keep[0].end));
    const auto text = model_->tokenizer().decode(part);
    EXPECT_NE(text.find("Be terse."), std::string::npos);
    EXPECT_EQ(text.find("word0"), std::string::npos);
    example_.raw = true;  // as a benchmark prescribes: without a template, so without its part
    const auto raw = ask(*model_, example_, settings_, cut).value();
    EXPECT_TRUE(raw.keep.empty());
    EXPECT_EQ(model_->tokenizer().decode(raw.prompt).find("terse"), std::string::npos);
}

TEST_F(TaskOnTinyModel, AnExampleThatCannotBeAskedSaysWhy) {
    settings_.query_aware = false;
    example_.context.clear();
    const auto result = run_example(*engine_, example_, configs_, settings_).value();
    EXPECT_TRUE(result.answers.empty());
    EXPECT_NE(result.skipped.find('x'), std::string::npos);
}

TEST(Task, GoesOnFromTheAnswersOfAnEarlierRun) {
    const test::TempFolder folder;
    std::vector<TaskExample> examples(5);
    for (std::size_t i = 0; i < examples.size(); ++i) examples[i].id = std::to_string(i);
    int runs = 0;
    const auto runner = [&](const TaskExample& example) -> Result<TaskResult> {
        ++runs;
        return made_up(example.id, "g", 1, 0.5);
    };
    const auto log = folder / "answers.jsonl";
    const auto stop = run_task(examples, runner, log, {{"a", 1}},
                               [](std::int64_t done, std::int64_t) { return done < 2; });
    ASSERT_FALSE(stop);
    EXPECT_EQ(stop.error().kind, ErrorKind::interrupted);
    const auto whole = run_task(examples, runner, log, {{"a", 1}}, {});
    ASSERT_TRUE(whole);
    EXPECT_EQ(runs, 5);
    EXPECT_EQ(whole->resumed, 2);
    EXPECT_EQ(whole->results.size(), 5U);
    const auto anew = run_task(examples, runner, log, {{"a", 2}}, {});
    EXPECT_EQ(anew->start, RunLog::Start::settings_changed);
    EXPECT_EQ(runs, 10);
}

TEST(Task, TheOrderComesFromTheSeedAndTheLimitCutsIt) {
    std::vector<TaskExample> examples(20);
    for (std::size_t i = 0; i < examples.size(); ++i) examples[i].id = std::to_string(i);
    TaskSettings settings;
    const auto ids = [&] {
        std::string all;
        for (const auto& example : chosen_examples(examples, settings)) all += example.id + ' ';
        return all;
    };
    const auto first = ids();
    EXPECT_EQ(ids(), first);
    settings.limit = 3;
    EXPECT_EQ(first.rfind(ids(), 0), 0U);
    settings.seed = 2;
    EXPECT_NE(first.rfind(ids(), 0), 0U);
}

}  // namespace
}  // namespace headkv
