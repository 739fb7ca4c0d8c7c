#include "calibrate/evidence.h"

#include <gtest/gtest.h>

namespace headkv {
namespace {

using Weights = std::vector<float>;

Evidence evidence(const std::vector<std::string>& pieces, std::string_view answer,
                  std::int64_t begin = 0) {
    return find_evidence(pieces, {begin, static_cast<std::int64_t>(pieces.size())}, answer);
}

TEST(FindEvidence, TheAnswerAsItStands) {
    const std::vector<std::string> pieces = {"Ada", " has", " the", " red", " key",
                                             ".",   " A",   " RED", " Key", "ring"};
    // Case does not matter, a part of another word ("Keyring") is none; nor does the full stop.
    const Evidence found = evidence(pieces, " Red key.");
    EXPECT_EQ(found.kind, "verbatim");
    EXPECT_EQ(found.weight, (Weights{0, 0, 0, 1, 1, 0, 0, 0, 0, 0}));
    EXPECT_EQ(found.top, 2);
    EXPECT_EQ(evidence(pieces, "red").weight, (Weights{0, 0, 0, 1, 0, 0, 0, 1, 0, 0}));
}

TEST(FindEvidence, OnlyInsideTheDocument) {
    const std::vector<std::string> pieces = {" red", " key", " is", " red"};
    EXPECT_EQ(evidence(pieces, "red", 2).weight, (Weights{0, 0, 0, 1}));
    EXPECT_EQ(evidence(pieces, "key", 2).kind, "document");
}

TEST(FindEvidence, WordsOfTheAnswerByHowRareTheyAre) {
    const std::vector<std::string> pieces = {"The",  " ox",  " and", " the", " hen",
                                             " and", " the", " ox",  "en",   " rest"};
    const Evidence found = evidence(pieces, "hen, ox or the cow");
    EXPECT_EQ(found.kind, "words");
    // "ox" once ("oxen" is another word), "hen" once, "the" three times.
    const float third = 1.0F / 3;
    EXPECT_EQ(found.weight, (Weights{third, 1, 0, third, 1, 0, third, 0, 0, 0}));
    EXPECT_EQ(found.top, 5);
}

TEST(FindEvidence, WordsThatAreEverywhereSayNothing) {
    std::vector<std::string> pieces;
    for (int i = 0; i < 9; ++i) pieces.insert(pieces.end(), {" the", " x"});
    pieces.emplace_back(" owl");
    EXPECT_EQ(evidence(pieces, "the").kind, "document");
    const Evidence owl = evidence(pieces, "the old owl");
    EXPECT_EQ(owl.kind, "words");
    EXPECT_EQ(owl.top, 1);
    EXPECT_EQ(owl.weight.back(), 1);
}

TEST(FindEvidence, NothingInCommonIsTheWholeDocument) {
    const std::vector<std::string> pieces = {"<s>", "Ask", ":", " a", " b", " c", " d"};
    const Evidence found = evidence(pieces, "negative", 2);
    EXPECT_EQ(found.kind, "document");
    EXPECT_EQ(found.weight, (Weights{0, 0, 0, 0, 1, 1, 1}));  // without the first four tokens
    EXPECT_EQ(found.top, 16);
}

TEST(EvidenceOf, TheHeaviestPartCountsAndBlanksDoNot) {
    const std::vector<std::string> pieces = {"ab", " ", "cd", "\n"};
    const std::vector<WeightedBytes> parts = {{1, 4, 0.5F}, {0, 1, 0.25F}, {3, 6, 1}};
    const Evidence found = evidence_of(pieces, parts, "x");
    EXPECT_EQ(found.weight, (Weights{0.5F, 0, 1, 0}));
    EXPECT_EQ(found.top, 2);
    EXPECT_EQ(evidence_of(pieces, {}, "x").top, 1);
}

TEST(EvidenceScore, StrongestPositionsTimesTheirWeight) {
    const Evidence evidence{{0, 1, 0.5F, 1}, 2, "x"};
    // Strongest two: 0 (no weight) and 2.
    EXPECT_DOUBLE_EQ(evidence_score(Weights{0.5F, 0.125F, 0.25F, 0.125F}, evidence), 0.125);
    // Behind the prompt there is no evidence; ties go to the lower position.
    EXPECT_DOUBLE_EQ(evidence_score(Weights{0, 0.25F, 0, 0.25F, 0.5F}, evidence), 0.25);
    EXPECT_DOUBLE_EQ(evidence_score(Weights{0, 1, 0, 0}, evidence), 1);
    EXPECT_DOUBLE_EQ(evidence_score(Weights{1}, {{1}, 16, "x"}), 1);  // fewer than `top`
}

}  // namespace
}  // namespace headkv
