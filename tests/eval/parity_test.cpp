#include "eval/parity.h"

#include <map>

#include "generated.h"

namespace headkv {
namespace {

using test::tiny_tokenizer;

TaskResult outcome(const std::string& kind, int pair, const std::string& variant, double full,
                   double mine) {
    TaskResult result;
    result.id = kind + "/100/" + std::to_string(pair) + "/" + variant;
    result.group = kind + "/" + variant;
    result.answers.push_back({"full", 0, "f", full, -0.5, 1000, 1000, 500});
    result.answers.push_back({"snapkv", 64, "s", mine, -0.75, 100, 1000, 64});
    return result;
}

TEST(Parity, PairsDifferInTheSwappedWordAlone) {
    const ParityOptions options{{}, {2000}, 7, 1};
    const auto data = make_parity(options, tiny_tokenizer());
    ASSERT_TRUE(data) << data.error().message;
    test::expect_well_formed(*data, 0.9);
    EXPECT_EQ(test::written(*make_parity(options, tiny_tokenizer())), test::written(*data));
    std::map<std::string, std::vector<const TaskExample*>> pairs;
    std::set<std::string> groups;
    for (const TaskExample& example : data->examples) {
        pairs[example.id.substr(0, example.id.rfind('/'))].push_back(&example);
        groups.insert(example.group);
        EXPECT_EQ(test::occurrences(example.context, example.answers[0]), 1U) << example.id;
    }
    EXPECT_EQ(pairs.size(), 3U * 7);
    EXPECT_EQ(groups.size(), 12U + 7 + 9);
    EXPECT_EQ(data->examples.size(), 7 * groups.size());
    for (const auto& [id, members] : pairs) {
        const std::string& a = members[0]->context;
        for (const TaskExample* other : members) {
            const std::string& b = other->context;
            EXPECT_EQ(other->answers, members[0]->answers);
            if (other == members[0]) continue;
            EXPECT_NE(a, b);
            // Alike from both ends to within one word.
            const auto front = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
            const auto back = std::mismatch(a.rbegin(), a.rend(), b.rbegin(), b.rend());
            EXPECT_LE(a.end() - front.first - (back.first - a.rbegin()), 10) << other->id;
        }
    }
}

TEST(Parity, TheGapIsBestLessWorst) {
    std::vector<TaskResult> results;
    // Full is right everywhere; the method loses half of b's answers and all of c's.
    for (int pair = 0; pair < 8; ++pair) {
        results.push_back(outcome("names", pair, "a", 1, 1));
        results.push_back(outcome("names", pair, "b", 1, pair % 2));
        results.push_back(outcome("names", pair, "c", 1, 0));
    }
    const auto gaps = parity_gaps(results, 1);
    ASSERT_EQ(gaps.size(), 2U);
    EXPECT_EQ(gaps[0].method, "full");
    EXPECT_EQ(gaps[0].pairs, 8);
    EXPECT_DOUBLE_EQ(gaps[0].gap.value, 0);
    EXPECT_DOUBLE_EQ(gaps[0].gap.high, 0);
    EXPECT_EQ(gaps[1].kind, "names");
    EXPECT_EQ(gaps[1].rows, 64);
    EXPECT_EQ(gaps[1].best, "a");
    EXPECT_EQ(gaps[1].worst, "c");
    EXPECT_DOUBLE_EQ(gaps[1].best_score, 1);
    EXPECT_DOUBLE_EQ(gaps[1].worst_score, 0);
    EXPECT_DOUBLE_EQ(gaps[1].gap.value, 1);
    EXPECT_DOUBLE_EQ(gaps[1].gap.low, 1);
    EXPECT_DOUBLE_EQ(gaps[1].beyond_full.value, 1);
}

TEST(Parity, WhatIsHardForFullTooCancels) {
    std::vector<TaskResult> results;
    for (int pair = 0; pair < 12; ++pair) {
        const double b = pair % 3 == 0 ? 1 : 0;
        results.push_back(outcome("places", pair, "a", 1, 1));
        results.push_back(outcome("places", pair, "b", b, b));
    }
    const auto gaps = parity_gaps(results, 1);
    ASSERT_EQ(gaps.size(), 2U);
    EXPECT_NEAR(gaps[1].gap.value, 2.0 / 3, 1e-12);
    EXPECT_LT(gaps[1].gap.low, 2.0 / 3);
    EXPECT_GT(gaps[1].gap.high, 2.0 / 3);
    EXPECT_DOUBLE_EQ(gaps[1].beyond_full.value, 0);
    EXPECT_DOUBLE_EQ(gaps[1].beyond_full.low, 0);
    EXPECT_DOUBLE_EQ(gaps[1].beyond_full.high, 0);
}

TEST(Parity, IncompletePairsAndOtherTasksAreLeftOut) {
    std::vector<TaskResult> results = {outcome("names", 0, "a", 1, 1),
                                       outcome("names", 0, "b", 1, 1),
                                       outcome("names", 1, "a", 1, 0)};
    results.push_back(outcome("names", 1, "b", 1, 0));
    results.back().skipped = "too long";
    results.back().answers.clear();
    TaskResult other = outcome("x", 0, "a", 1, 1);
    other.id = "niah";
    results.push_back(other);
    other.id = "vt/4096/1";
    other.group = "vt/4096";
    results.push_back(other);
    const auto gaps = parity_gaps(results, 1);
    ASSERT_EQ(gaps.size(), 2U);
    EXPECT_EQ(gaps[1].pairs, 1);
    EXPECT_DOUBLE_EQ(gaps[1].gap.value, 0);
    EXPECT_TRUE(parity_gaps({}, 1).empty());
}

}  // namespace
}  // namespace headkv
