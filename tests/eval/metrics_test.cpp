// Worked examples: the values are computed from the definitions by hand.
#include "eval/metrics.h"

#include <gtest/gtest.h>

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
