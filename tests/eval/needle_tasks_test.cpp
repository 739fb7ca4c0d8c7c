#include "eval/needle_tasks.h"

#include <sstream>

#include "calibrate/haystack.h"
#include "calibrate/needles.h"
#include "generated.h"

namespace headkv {
namespace {

using test::occurrences;
using test::tiny_tokenizer;

TaskData made(const NeedleTaskOptions& options) {
    auto data = make_needle_tasks(options, tiny_tokenizer());
    if (!data) throw std::runtime_error(data.error().message);
    return std::move(*data);
}

TEST(NeedleTasks, AGridOfLengthsAndDepths) {
    const NeedleTaskOptions options{{}, {2000, 4000}, {0, 50, 100}, 3, 1};
    const auto data = made(options);
    EXPECT_EQ(data.examples.size(), 5U * 2 * 3 * 3);
    test::expect_well_formed(data, 0.9);
    EXPECT_EQ(test::written(made(options)), test::written(data));
    EXPECT_NE(test::written(made({{}, {2000, 4000}, {0, 50, 100}, 3, 2})), test::written(data));
    for (const TaskExample& example : data.examples) {
        ASSERT_TRUE(example.depth);
        EXPECT_TRUE(example.id.starts_with(example.group + "/"));
        // The answer's sentence stands at the depth, but for half a sentence and the needle itself.
        const std::string& answer = example.answers[0];
        const std::size_t at = example.context.find(answer);
        ASSERT_NE(at, std::string::npos) << example.id;
        const double share = static_cast<double>(at) / static_cast<double>(example.context.size());
        EXPECT_NEAR(share, *example.depth / 100, 0.16) << example.id;
    }
}

TEST(NeedleTasks, FactsStandInTheTextOnceAndTheQuestionDoesNotTell) {
    const auto data = made({{}, {3000}, {30}, 12, 1});
    for (const TaskExample& example : data.examples) {
        const bool several = example.group.starts_with("multi_value");
        EXPECT_EQ(example.answers.size(), several ? 3U : 1U);
        for (const std::string& answer : example.answers) {
            EXPECT_EQ(occurrences(example.context, answer), 1U) << example.id << ' ' << answer;
            EXPECT_EQ(occurrences(example.question, answer), 0U) << example.id;
        }
    }
}

// Scores measured on what they are tested on would flatter themselves.
TEST(NeedleTasks, CalibrationAsksNothingOfThem) {
    const auto data = made({{}, {3000}, {30}, 40, 1});
    for (const bool steps : {false, true}) {
        for (const Needle& needle : family_needles(steps)) {
            for (const TaskExample& example : data.examples) {
                EXPECT_NE(example.question, needle.question);
                EXPECT_EQ(occurrences(example.context, needle.needle), 0U) << needle.needle;
                EXPECT_EQ(occurrences(example.context, needle.real_needle), 0U) << example.id;
                for (const std::string& answer : example.answers) EXPECT_NE(answer, needle.key);
            }
        }
    }
}

TEST(NeedleTasks, AParaphraseSharesNoContentWordWithItsNeedle) {
    const std::set<std::string> empty_words = {
        "the",   "a",     "an", "of",   "in",  "to",   "by",   "is",   "was", "what",
        "who",   "whom",  "on", "at",   "for", "that", "this", "with", "and", "which",
        "whose", "where", "as", "does", "had", "no",   "did",  "from"};
    const auto words = [&](const std::string& text) {
        std::set<std::string> found;
        std::string plain;
        for (const char c : text) {
            plain += std::isalpha(static_cast<unsigned char>(c)) != 0
                         ? static_cast<char>(std::tolower(static_cast<unsigned char>(c)))
                         : ' ';
        }
        std::istringstream in(plain);
        // A stem of five letters: "steers" and "steer" are one word.
        for (std::string word; in >> word;) {
            if (word.size() > 1 && !empty_words.contains(word)) found.insert(word.substr(0, 5));
        }
        return found;
    };
    std::set<std::string> questions;
    for (const TaskExample& example : made({{"paraphrase"}, {1500}, {0}, 60, 1}).examples) {
        questions.insert(example.question);
        const std::string needle = example.context.substr(0, example.context.find(". ") + 1);
        ASSERT_NE(needle.find(example.answers[0]), std::string::npos);
        const auto asked = words(example.question);
        for (const std::string& word : words(needle)) {
            EXPECT_FALSE(asked.contains(word)) << needle << ' ' << example.question;
        }
    }
    EXPECT_GE(questions.size(), 10U);
}

TEST(NeedleTasks, ReasoningNeedsBothFacts) {
    std::size_t hops = 0;
    for (const TaskExample& example : made({{"reason"}, {1500}, {40}, 20, 1}).examples) {
        if (example.metric == Metric::contains) {
            // The person asked about is named beside another one, and the place beside that one.
            ++hops;
            const std::size_t place = example.context.find(example.answers[0]);
            const std::size_t begin = sentence_border(example.context, place);
            const std::string sentence = example.context.substr(begin, place - begin);
            std::string asked;
            for (const std::string& name : [] {
                     Random random(0);
                     return person_names(random);
                 }()) {
                if (occurrences(example.question, name) > 0) asked = name;
            }
            ASSERT_FALSE(asked.empty()) << example.question;
            EXPECT_EQ(occurrences(example.context, asked), 1U);
            EXPECT_EQ(occurrences(sentence, asked), 0U);
            continue;
        }
        ASSERT_EQ(example.labels.size(), 2U);
        const auto number = [&](const std::string& who) {
            std::istringstream rest(example.context.substr(example.context.find(who) + who.size()));
            std::string word;
            while (rest >> word && std::isdigit(static_cast<unsigned char>(word[0])) == 0) {
            }
            return std::stoi(word);
        };
        const bool more = occurrences(example.question, " more ") == 1;
        EXPECT_NE(more, occurrences(example.question, " fewer ") == 1);
        EXPECT_EQ(more, number(example.labels[0]) > number(example.labels[1]));
        EXPECT_EQ(
            label_score(example.labels[0], example.question, example.answers[0], example.labels),
            1);
        EXPECT_EQ(label_score(example.labels[0] + ", not " + example.labels[1], example.question,
                              example.answers[0], example.labels),
                  0);
    }
    EXPECT_EQ(hops, 10U);
}

TEST(NeedleTasks, RefusesWhatCannotBeMade) {
    const auto works = [](const NeedleTaskOptions& options) {
        return make_needle_tasks(options, tiny_tokenizer()).has_value();
    };
    EXPECT_TRUE(works({{"single"}, {500}, {12.5}, 1, 1}));
    EXPECT_FALSE(works({{"double"}, {500}, {10}, 1, 1}));
    EXPECT_FALSE(works({{"single"}, {50}, {10}, 1, 1}));
    EXPECT_FALSE(works({{"single"}, {500}, {101}, 1, 1}));
    EXPECT_FALSE(works({{"single"}, {500}, {}, 1, 1}));
    EXPECT_FALSE(works({{"single"}, {500}, {10, 10}, 1, 1}));
}

}  // namespace
}  // namespace headkv
