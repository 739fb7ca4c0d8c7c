#include "calibrate/metrics.h"

#include <gtest/gtest.h>

namespace headkv {
namespace {

TEST(Rouge, RecallCountsWordsOfTheReference) {
    // 3 of the 4 words; "the" occurs twice in the reference and once in the response.
    EXPECT_DOUBLE_EQ(rouge1_recall("The cat, mat!", "the cat the mat"), 0.75);
    EXPECT_DOUBLE_EQ(rouge1_recall("THE CAT sat on the mat today", "the cat the mat"), 1.0);
    EXPECT_DOUBLE_EQ(rouge1_recall("", "the cat"), 0.0);
    EXPECT_DOUBLE_EQ(rouge1_recall("anything", ""), 0.0);
    EXPECT_DOUBLE_EQ(rouge1_recall("cat cat cat", "cat dog"), 0.5);
}

TEST(AnswerF1, DropsArticlesAndPunctuation) {
    EXPECT_DOUBLE_EQ(answer_f1("The red, barn.", "a red barn"), 1.0);
    // 2 shared of 3 given and 4 expected: precision 2/3, recall 1/2.
    EXPECT_DOUBLE_EQ(answer_f1("old red barn", "red barn near water"), 4.0 / 7.0);
    EXPECT_DOUBLE_EQ(answer_f1("don't", "dont"), 1.0);
    EXPECT_DOUBLE_EQ(answer_f1("the", "a"), 0.0);
    EXPECT_DOUBLE_EQ(answer_f1("x", "y"), 0.0);
}

TEST(Words, LowerCasedRunsOfLettersAndDigits) {
    EXPECT_EQ(words_of("It's 47, Zoë!"), (std::vector<std::string>{"it", "s", "47", "zo\xc3\xab"}));
}

}  // namespace
}  // namespace headkv
