#include "eval/scbench.h"

#include <sstream>

#include "calibrate/probe.h"
#include "engine/sequences.h"
#include "generated.h"
#include "headkv/sampler.h"
#include "headkv/session.h"

namespace headkv {
namespace {

using test::occurrences;
using test::tiny_tokenizer;

TaskData made(std::vector<std::string> tasks, std::int64_t turns = 5, std::uint64_t seed = 1) {
    auto data = make_scbench({std::move(tasks), {4000}, 3, turns, seed}, tiny_tokenizer());
    if (!data) throw std::runtime_error(data.error().message);
    return std::move(*data);
}

std::vector<TaskTurn> questions_of(const TaskExample& example) {
    std::vector<TaskTurn> all = {{example.question, example.answers}};
    all.insert(all.end(), example.turns.begin(), example.turns.end());
    return all;
}

TEST(Scbench, SeveralQuestionsOnOneContext) {
    const auto data = made({});
    EXPECT_EQ(data.examples.size(), 6U * 3);
    test::expect_well_formed(data, 0.9);
    EXPECT_EQ(test::written(made({})), test::written(data));
    EXPECT_NE(test::written(made({}, 5, 2)), test::written(data));
    EXPECT_EQ(data.examples[0].group, "kv");
    EXPECT_EQ(data.examples[0].id, "kv/4000/1");
    for (const TaskExample& example : data.examples) {
        EXPECT_EQ(example.turns.size(), 4U);
        std::set<std::string> asked;
        for (const TaskTurn& turn : questions_of(example)) {
            EXPECT_TRUE(asked.insert(turn.question).second) << example.id;
            for (const std::string& answer : turn.answers) {
                EXPECT_GT(occurrences(example.context, answer), 0U) << example.id;
                EXPECT_EQ(occurrences(turn.question, answer), 0U) << example.id;
            }
        }
    }
}

TEST(Scbench, AnswersAreRight) {
    for (const TaskExample& example : made({"kv", "prefix_suffix", "math_find"}, 8).examples) {
        for (const TaskTurn& turn : questions_of(example)) {
            const std::string& answer = turn.answers[0];
            EXPECT_EQ(occurrences(example.context, answer), 1U);
            if (example.group == "kv") {
                const std::string key = turn.question.substr(turn.question.find("key ") + 4, 36);
                EXPECT_EQ(occurrences(example.context, key + ": " + answer), 1U);
            } else if (example.group == "prefix_suffix") {
                EXPECT_EQ(occurrences(turn.question, '"' + answer.substr(0, 4) + '"'), 1U);
                EXPECT_EQ(occurrences(turn.question, '"' + answer.substr(12) + '"'), 1U);
            } else {
                std::vector<std::string> numbers;
                std::istringstream in(example.context.substr(example.context.find("\n\n")));
                for (std::string number; in >> number;) numbers.push_back(number);
                std::sort(numbers.begin(), numbers.end());
                std::size_t k = 0;
                for (const auto& [name, place] :
                     {std::pair{" second ", 1U}, {" third ", 2U}, {" fourth ", 3U}}) {
                    if (occurrences(turn.question, name) > 0) k = place;
                }
                const bool largest = occurrences(turn.question, "largest") > 0;
                EXPECT_EQ(answer, largest ? numbers[numbers.size() - 1 - k] : numbers[k])
                    << turn.question;
            }
        }
    }
    for (const TaskExample& example : made({"vt"}, 4).examples) {
        for (const TaskTurn& turn : questions_of(example)) {
            ASSERT_EQ(turn.answers.size(), 3U);
            const std::string value = turn.question.substr(turn.question.find("value ") + 6, 5);
            EXPECT_EQ(occurrences(example.context, "VAR " + turn.answers[0] + " = " + value), 1U);
            for (std::size_t i = 1; i < 3; ++i) {
                EXPECT_EQ(occurrences(example.context, "VAR " + turn.answers[i] + " = VAR " +
                                                           turn.answers[i - 1] + "."),
                          1U);
            }
        }
    }
    for (const TaskExample& example : made({"many_shot"}, 20).examples) {
        for (const TaskTurn& turn : questions_of(example)) {
            // What is asked is not among the examples.
            const std::size_t at = turn.question.find('"') + 1;
            const std::string text = turn.question.substr(at, turn.question.find('"', at) - at);
            EXPECT_EQ(occurrences(example.context, "Text: " + text + "\n"), 0U);
        }
    }
}

TEST(Scbench, RefusesWhatCannotBeMade) {
    const auto works = [](const ScbenchOptions& options) {
        return make_scbench(options, tiny_tokenizer()).has_value();
    };
    EXPECT_TRUE(works({{"kv"}, {3000}, 1, 1, 1}));
    EXPECT_FALSE(works({{"kw"}, {3000}, 1, 5, 1}));
    EXPECT_FALSE(works({{"kv"}, {100}, 1, 5, 1}));
    EXPECT_FALSE(works({{"kv"}, {3000}, 1, 0, 1}));
    EXPECT_FALSE(works({{"kv"}, {3000}, 1, 21, 1}));
}

// Several turns on a random model: what each of them reads.
class TurnsOnTinyModel : public testing::Test {
protected:
    void SetUp() override {
        test::write_tiny_model({}, folder_ / "m.gguf");
        model_ = Model::load(folder_ / "m.gguf").value();
        engine_ = Engine::create(model_).value();
        example_.id = "x";
        example_.group = "g";
        for (int i = 0; i < 60; ++i) example_.context += "word" + std::to_string(i) + ' ';
        example_.question = "Which word?";
        example_.answers = {"word7"};
        example_.turns = {{"And before that?", {"word6"}}, {"Which is the last?", {"word59"}}};
        example_.metric = Metric::contains;
        settings_.max_tokens = 5;
        MethodConfig snapkv;
        snapkv.method = "snapkv";
        snapkv.budget = {Budget::Unit::rows, 24};
        configs_.push_back({snapkv, "snapkv", 24});
    }
    TaskResult run() { return run_example(*engine_, example_, configs_, settings_).value(); }
    // What one question with nothing behind it gives.
    TaskResult run_alone(std::size_t turn) {
        TaskExample one = example_;
        one.turns.clear();
        if (turn > 0) {
            one.question = example_.turns[turn - 1].question;
            one.answers = example_.turns[turn - 1].answers;
        }
        TaskSettings settings = settings_;
        settings.query_aware = false;
        return run_example(*engine_, one, configs_, settings).value();
    }
    test::TempFolder folder_;
    std::shared_ptr<const Model> model_;
    std::unique_ptr<Engine> engine_;
    TaskExample example_;
    TaskSettings settings_;
    std::vector<ConfigUnderTest> configs_;
};

TEST_F(TurnsOnTinyModel, ATurnReadsWhatStandsBeforeItInOneSequence) {
    for (const bool aware : {true, false}) {
        settings_.query_aware = aware;
        std::int64_t cut = 0;
        const Asked asked = ask(*model_, example_, settings_, cut).value();
        ASSERT_EQ(asked.turns.size(), 2U);
        EXPECT_EQ(asked.compressed == asked.prompt.size(), aware);
        const auto answers = answer_with_all(*engine_, asked, configs_).value();
        // The same by hand: each token of a turn decoded on its own, behind the answer before it.
        auto filled = engine_
                          ->prefill(std::span(asked.prompt).first(asked.compressed),
                                    methods_of(with_full(configs_)))
                          .value();
        const Sequences guard(*engine_, filled.sequences);
        for (std::size_t config = 0; config < 2; ++config) {
            const SequenceId id = filled.sequences[config];
            std::vector<float> logits = filled.logits;
            const auto read = [&](Token token) {
                const DecodeInput input{id, token, true};
                ASSERT_TRUE(engine_->decode({&input, 1}));
                logits.assign(engine_->logits(0).begin(), engine_->logits(0).end());
            };
            for (std::size_t i = asked.compressed; i < asked.prompt.size(); ++i) {
                read(asked.prompt[i]);
            }
            const auto answer = [&] {
                std::vector<Token> said;
                while (static_cast<std::int64_t>(said.size()) < asked.max_tokens) {
                    const Token token = best_token(logits);
                    if (model_->tokenizer().is_end(token)) break;
                    said.push_back(token);
                    read(token);
                }
                return model_->tokenizer().decode(said);
            };
            EXPECT_EQ(answers[config].text, answer());
            for (std::size_t turn = 0; turn < 2; ++turn) {
                for (const Token token : asked.turns[turn].prompt) read(token);
                EXPECT_NEAR(answers[config].turns[turn].log_probability[0],
                            log_probability(logits, asked.turns[turn].reference[0]), 1e-4);
                EXPECT_EQ(answers[config].turns[turn].text, answer()) << config << ' ' << turn;
            }
        }
    }
}

TEST_F(TurnsOnTinyModel, ASharedContextEqualsAFreshRunOfEachQuestion) {
    settings_.turn_mode = TurnMode::shared_context;
    for (const bool aware : {true, false}) {
        settings_.query_aware = aware;  // makes no difference
        const auto result = run();
        ASSERT_EQ(result.answers.size(), 2U);
        for (std::size_t config = 0; config < 2; ++config) {
            const auto& turns = result.answers[config].turns;
            ASSERT_EQ(turns.size(), 3U);
            double sum = 0;
            for (std::size_t turn = 0; turn < 3; ++turn) {
                const auto alone = run_alone(turn);
                EXPECT_EQ(turns[turn].text, alone.answers[config].text);
                EXPECT_NEAR(turns[turn].log_probability, alone.answers[config].log_probability,
                            1e-6);
                EXPECT_EQ(result.answers[config].kv_bytes, alone.answers[config].kv_bytes);
                sum += turns[turn].log_probability;
            }
            EXPECT_NEAR(result.answers[config].log_probability, sum / 3, 1e-12);
        }
    }
}

TEST_F(TurnsOnTinyModel, TheDecodeTimeBoundHoldsOverTheTurns) {
    for (int i = 0; i < 12; ++i) example_.turns.push_back(example_.turns[0]);
    settings_.max_tokens = 20;
    const auto result = run();
    EXPECT_EQ(result.answers[1].turns.size(), 15U);
    // No sequence is left: a new one has the engine's first memory to itself.
    EXPECT_DOUBLE_EQ(result.answers[1].rows_kept, 24);
}

TEST_F(TurnsOnTinyModel, AllTurnsFitTheContextOrTheMiddleIsCut) {
    for (int i = 0; i < 260; ++i) example_.context += "more" + std::to_string(i) + ' ';
    for (const TurnMode mode : {TurnMode::multi_turn, TurnMode::shared_context}) {
        settings_.turn_mode = mode;
        std::int64_t cut = 0;
        const Asked asked = ask(*model_, example_, settings_, cut).value();
        EXPECT_GT(cut, 0);
        std::size_t most = asked.prompt.size() + 5;
        for (const AskedTurn& turn : asked.turns) {
            if (mode == TurnMode::multi_turn) most += turn.prompt.size() + 5;
            if (mode == TurnMode::shared_context) {
                most = std::max(most, asked.compressed + turn.prompt.size() + 5);
            }
            const auto text = model_->tokenizer().decode(turn.prompt);
            EXPECT_NE(text.find('?'), std::string::npos);
        }
        EXPECT_LE(most, 2048U);
        EXPECT_GT(most, 2000U);
    }
}

TEST_F(TurnsOnTinyModel, TurnsAreInTheLogAndInTheReport) {
    example_.depth = 25;
    example_.length = 512;
    const auto result = run();
    const auto back = task_result_from_json(to_json(result));
    ASSERT_TRUE(back);
    EXPECT_EQ(to_json(*back), to_json(result));
    EXPECT_EQ(back->answers[1].turns.size(), 3U);
    EXPECT_EQ(back->depth, 25);
    EXPECT_EQ(back->length, 512);
    const auto rows = summarize(std::vector{result}, 1);
    ASSERT_EQ(rows.size(), 8U);
    EXPECT_EQ(rows[0].group, "");
    EXPECT_EQ(rows[2].group, "g/turn 1");
    EXPECT_EQ(rows[7].group, "g/turn 3");
    EXPECT_EQ(rows[7].method, "snapkv");
    const double full = result.answers[0].turns[2].log_probability;
    EXPECT_NEAR(rows[7].dlog_probability.value, result.answers[1].turns[2].log_probability - full,
                1e-12);
    EXPECT_FALSE(turn_result(result, 3));
    // A log of an earlier version.
    auto old = to_json(result);
    old.erase("depth");
    old.erase("length");
    for (auto& answer : old["answers"]) answer.erase("turns");
    EXPECT_TRUE(task_result_from_json(old)->answers[0].turns.empty());
}

}  // namespace
}  // namespace headkv
