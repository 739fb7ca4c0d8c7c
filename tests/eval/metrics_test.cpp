// Worked examples: the values are computed from the definitions, by hand here, by
// tests/eval/data/make_metrics.py in metrics.jsonl.
#include "eval/metrics.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "eval/metrics_longbench.h"

namespace headkv {
namespace {

struct Worked {
    Metric metric;
    const char* answer;
    const char* reference;
    double score;
};

class WorkedExamples : public testing::TestWithParam<Worked> {};

TEST_P(WorkedExamples, ScoreAsDefined) {
    const auto& [metric, answer, reference, score] = GetParam();
    EXPECT_NEAR(score_answer(metric, answer, reference), score, 1e-12)
        << metric_name(metric) << ": \"" << answer << "\" for \"" << reference << '"';
}

INSTANTIATE_TEST_SUITE_P(
    F1, WorkedExamples,
    testing::Values(Worked{Metric::f1, "The owl.", "owl", 1},
                    Worked{Metric::f1, "in the barn", "the old barn", 2.0 / 4},
                    Worked{Metric::f1, "red red red", "red", 2.0 / 4},
                    Worked{Metric::f1, "red", "red red red", 2.0 / 4},
                    Worked{Metric::f1, "don't go", "dont go", 1},
                    Worked{Metric::f1, "a an the", "the", 0}, Worked{Metric::f1, "", "x", 0},
                    Worked{Metric::f1, "one two three four", "three four five", 4.0 / 7},
                    Worked{Metric::f1, "Paris, France", "paris", 2.0 / 3},
                    Worked{Metric::f1, "blue", "green", 0}));

INSTANTIATE_TEST_SUITE_P(
    Contains, WorkedExamples,
    testing::Values(Worked{Metric::contains, "It was OLD  Maren, I think", "old maren", 1},
                    Worked{Metric::contains, "It was old\nMaren", "old maren", 1},
                    Worked{Metric::contains, "It was Maren", "old maren", 0},
                    Worked{Metric::contains, "anything", "", 0},
                    Worked{Metric::contains, "", "x", 0},
                    Worked{Metric::exact, " Maren \n", "maren", 1},
                    Worked{Metric::exact, "Maren.", "Maren", 0}));

INSTANTIATE_TEST_SUITE_P(
    RougeL, WorkedExamples,
    testing::Values(  // police kill the gunman / the gunman police killed ...
        Worked{Metric::rouge_l, "police kill the gunman", "police killed the gunman", 6.0 / 8},
        Worked{Metric::rouge_l, "the gunman kill police", "police killed the gunman", 4.0 / 8},
        Worked{Metric::rouge_l, "a b c d", "a c d", 6.0 / 7},
        Worked{Metric::rouge_l, "A, b!", "a b", 1}, Worked{Metric::rouge_l, "x", "y", 0},
        Worked{Metric::rouge_l, "", "y", 0}));

INSTANTIATE_TEST_SUITE_P(Edit, WorkedExamples,
                         testing::Values(Worked{Metric::edit, "return x", "return x", 1},
                                         Worked{Metric::edit, "abcd", "acd", 6.0 / 7},
                                         Worked{Metric::edit, "abc", "xyz", 0},
                                         Worked{Metric::edit, "ab", "ba", 2.0 / 4},
                                         Worked{Metric::edit, "", "a", 0}));

TEST(Metrics, AgreeWithTheWorkedExamplesOfTheFixture) {
    std::ifstream in(HEADKV_SOURCE_DIR "/tests/eval/data/metrics.jsonl");
    ASSERT_TRUE(in);
    std::map<std::string, int> examples;
    for (std::string line; std::getline(in, line);) {
        const auto row = nlohmann::json::parse(line);
        const std::string name = row.at("metric");
        const std::string answer = row.at("answer");
        const std::string reference = row.at("reference");
        const auto labels = row.value("labels", std::vector<std::string>());
        const auto metric = metric_by_name(name);
        ASSERT_TRUE(metric) << name;
        const double score =
            *metric == Metric::labels
                ? label_score(answer, row.at("question").get<std::string>(), reference, labels)
                : score_answer(*metric, answer, reference, labels);
        EXPECT_NEAR(score, row.at("score").get<double>(), 1e-12) << line;
        ++examples[name];
    }
    for (const std::string_view name : metric_names()) {
        EXPECT_GE(examples[std::string(name)], 50) << name;
    }
}

TEST(RougeLSets, CountsAWordOnceAndJoinsTheSubsequencesOfAllSentences) {
    // Lin's example: the sentences have w1 w2 and w1 w3 w5 in common with the reference.
    const double p = 4.0 / 8;
    const double r = 4.0 / 5;
    EXPECT_NEAR(rouge_l_sets("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5"),
                2 * p * r / (p + r), 1e-8);
    EXPECT_NEAR(rouge_l_sets("x x x", "x"), 1, 1e-8);
    EXPECT_NEAR(rouge_l_sets("X, y", "x y"), 0.5, 1e-8);  // letter case and commas stay
    EXPECT_EQ(rouge_l_sets("...", "x"), 0);
    // The blank behind the full stop is a sentence of one empty word.
    EXPECT_NEAR(rouge_l_sets("x. ", "x"), 2.0 / 3, 1e-8);
}

TEST(RougeLSets, LongSentencesAreScored) {
    std::string text;  // deeper than Python would recurse
    for (int i = 0; i < 3000; ++i) text.append(std::to_string(i)).append(" ");
    EXPECT_NEAR(rouge_l_sets(text, text), 1, 1e-8);
}

TEST(Classification, SharesThePointAmongTheLabelsFound) {
    const std::vector<std::string> labels = {"Food", "Date", "Other entity", "Other", "entity"};
    EXPECT_EQ(classification_score("Date", "Date", labels), 1);
    EXPECT_EQ(classification_score("Date or Food", "Date", labels), 0.5);
    EXPECT_EQ(classification_score("Food", "Date", labels), 0);
    // "Other" is struck out, and "entity" behind it is then missed.
    EXPECT_EQ(classification_score("Other entity", "Other entity", labels), 0.5);
    EXPECT_EQ(classification_score("Date", "Date", {}), 0);
}

TEST(Retrieval, TakesTheFirstNumberedParagraph) {
    EXPECT_EQ(paragraph_number("Paragraph 12"), "12");
    EXPECT_EQ(paragraph_number("段落7 and Paragraph 3"), "7");
    EXPECT_EQ(paragraph_number("Paragraph x, Paragraph 4"), "4");
    EXPECT_EQ(paragraph_number("paragraph 4"), std::nullopt);
    EXPECT_EQ(paragraph_number("段落"), std::nullopt);
}

TEST(Metrics, SomeNeedTheLabelsOfTheirTask) {
    EXPECT_TRUE(metric_needs_labels(Metric::labels));
    EXPECT_TRUE(metric_needs_labels(Metric::classification));
    EXPECT_FALSE(metric_needs_labels(Metric::f1));
    const std::vector<std::string> labels = {"Food", "Date"};
    const std::vector<std::string> references = {"Food", "Date"};
    EXPECT_EQ(score_answer(Metric::classification, "a Date", references, labels), 1);
    EXPECT_EQ(score_answer(Metric::classification, "a Date", references), 0);
}

TEST(Metrics, TheBestReferenceCounts) {
    const std::vector<std::string> references = {"a barn", "an old stable"};
    EXPECT_DOUBLE_EQ(score_answer(Metric::f1, "old stable", references), 1);
    EXPECT_DOUBLE_EQ(score_answer(Metric::f1, "old stable", std::span<const std::string>()), 0);
}

TEST(Metrics, NamesRoundTripAndUnknownOnesAreRefused) {
    for (const std::string_view name : metric_names()) {
        EXPECT_EQ(metric_name(metric_by_name(name).value()), name);
        if (const auto refused = metric_by_name(std::string(name) + "x"); !refused) {
            EXPECT_NE(refused.error().message.find(name), std::string::npos);
        } else {
            ADD_FAILURE() << name;
        }
    }
}

TEST(Labels, TheOnlyLabelsMustBeThoseOfTheTarget) {
    const std::vector<std::string> rooms = {"bathroom", "garden", "kitchen", "office"};
    const auto score = [&](const char* answer, const char* target) {
        return label_score(answer, "Where was Mary before the office?", target, rooms);
    };
    EXPECT_EQ(score("The most recent location of Mary is Kitchen.", "kitchen"), 1);
    EXPECT_EQ(score("kitchen or garden", "kitchen"), 0);
    EXPECT_EQ(score("kitchen. Then the garden", "kitchen"), 1);  // up to the first full stop
    EXPECT_EQ(score("before the office in the kitchen", "kitchen"), 1);  // asked for, not said
    EXPECT_EQ(score("kitchen<example> garden", "kitchen"), 1);
    EXPECT_EQ(score("garden and kitchen", "kitchen,garden"), 1);
    EXPECT_EQ(score("garden", "kitchen,garden"), 0);
    EXPECT_EQ(score("nowhere", "kitchen"), 0);
    EXPECT_EQ(score("nowhere", ""), 0);
}

}  // namespace
}  // namespace headkv
