#include "calibrate/needles.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "calibrate/metrics.h"

namespace headkv {
namespace {

class NeedleFile : public ::testing::Test {
protected:
    void SetUp() override {
        path_ = std::filesystem::temp_directory_path() /
                ("headkv-needles-" + std::to_string(::getpid()) + ".jsonl");
    }
    void TearDown() override { std::filesystem::remove(path_); }
    Result<std::vector<Needle>> load(const std::string& content) {
        std::ofstream(path_) << content;
        return load_needles(path_);
    }
    std::filesystem::path path_;
};

TEST(Needles, BuiltInOnesAreEnoughAndWellFormed) {
    EXPECT_GE(single_fact_needles().size(), 12U);
    EXPECT_GE(comparison_needles().size(), 6U);
    EXPECT_GE(evaluation_needles().size(), 12U);
    for (const auto needles : {single_fact_needles(), comparison_needles(), evaluation_needles()}) {
        for (const Needle& needle : needles) {
            EXPECT_NE(find_ignoring_case(needle.needle, needle.real_needle), std::string::npos);
            EXPECT_NE(find_ignoring_case(needle.answer, needle.key), std::string::npos);
            EXPECT_NE(find_ignoring_case(needle.real_needle, needle.key), std::string::npos);
            EXPECT_EQ(find_ignoring_case(needle.question, needle.key), std::string::npos);
            EXPECT_FALSE(needle.key.empty());
            EXPECT_EQ(needle.needle.back(), '.');
            EXPECT_EQ(needle.question.back(), '?');
        }
    }
}

TEST(Needles, EvaluationSharesNothingWithCalibration) {
    std::set<std::string> calibrated;
    const auto plain = family_needles(false), steps = family_needles(true);
    for (const auto needles : {single_fact_needles(), comparison_needles(),
                               std::span<const Needle>(plain), std::span<const Needle>(steps)}) {
        for (const Needle& needle : needles) calibrated.insert({needle.question, needle.key});
    }
    for (const Needle& needle : evaluation_needles()) {
        EXPECT_FALSE(calibrated.contains(needle.question));
        EXPECT_FALSE(calibrated.contains(needle.key));
    }
}

// The ages in the needle must make its answer the right one: read them and compare.
TEST(Needles, ComparisonsAreTrue) {
    std::size_t first = 0;
    for (const Needle& needle : comparison_needles()) {
        const std::string name = needle.answer.substr(0, needle.answer.find(' '));
        const auto age_of = [&](const std::string& who) {
            const std::size_t at = needle.needle.find(who + " is ");
            EXPECT_NE(at, std::string::npos) << who;
            return std::stoi(needle.needle.substr(at + who.size() + 4));
        };
        const std::size_t of = needle.question.find(" one of ") + 8;
        const std::size_t conjunction = needle.question.find(" and ", of);
        const std::string a = needle.question.substr(of, conjunction - of);
        const std::string b = needle.question.substr(
            conjunction + 5, needle.question.find(' ', conjunction + 5) - conjunction - 5);
        const bool older = needle.question.find("older") != std::string::npos;
        EXPECT_EQ(name, (age_of(a) > age_of(b)) == older ? a : b) << needle.question;
        EXPECT_TRUE(needle.real_needle.starts_with(name));
        first += needle.needle.starts_with(name) ? 1 : 0;
    }
    // Which person comes first says nothing about the answer.
    EXPECT_EQ(first * 2, comparison_needles().size());
}

std::vector<std::string> families_of(const std::vector<Needle>& needles) {
    std::vector<std::string> names;
    for (const Needle& needle : needles) names.push_back(needle.family);
    return names;
}

TEST(NeedleFamilies, AreEquallyManyAndWellFormed) {
    for (const bool steps : {false, true}) {
        const auto needles = family_needles(steps);
        std::map<std::string, int> counts;
        std::set<std::string> questions;
        for (const Needle& needle : needles) {
            ++counts[needle.family];
            EXPECT_TRUE(questions.insert(needle.question).second) << needle.question;
            EXPECT_FALSE(needle.key.empty()) << needle.needle;
            EXPECT_NE(find_ignoring_case(needle.needle, needle.real_needle), std::string::npos)
                << needle.needle;
            EXPECT_NE(find_ignoring_case(needle.real_needle, needle.key), std::string::npos)
                << needle.needle;
            EXPECT_NE(find_ignoring_case(needle.answer, needle.key), std::string::npos)
                << needle.needle;
            // The question does not give the answer away, nor does another sentence.
            EXPECT_EQ(find_ignoring_case(needle.question, needle.key), std::string::npos)
                << needle.question;
            for (const std::string& text : needle.elsewhere) {
                EXPECT_EQ(find_ignoring_case(text, needle.key), std::string::npos) << text;
            }
        }
        EXPECT_EQ(counts.size(), steps ? 7U : 5U);
        for (const auto& [family, count] : counts) EXPECT_EQ(count, 8) << family;
        EXPECT_EQ(counts.count("comparison") + counts.count("two_hop"), steps ? 2U : 0U);
    }
}

// The number asked for is the one that the question's word means.
TEST(NeedleFamilies, NumbersAreTrue) {
    for (const Needle& needle : family_needles(true)) {
        if (needle.family != "number") continue;
        std::vector<long> numbers;
        for (std::size_t i = 0; i < needle.needle.size(); ++i) {
            const auto digit = [&](std::size_t at) {
                return at < needle.needle.size() && needle.needle[at] >= '0' &&
                       needle.needle[at] <= '9';
            };
            if (digit(i) && (i == 0 || !digit(i - 1))) {
                numbers.push_back(std::stol(needle.needle.substr(i)));
            }
        }
        ASSERT_EQ(numbers.size(), 2U) << needle.needle;
        const bool least = needle.question.find("smaller") != std::string::npos ||
                           needle.question.find("cheaper") != std::string::npos;
        const auto [low, high] = std::minmax(numbers[0], numbers[1]);
        EXPECT_EQ(std::stol(needle.key), least ? low : high) << needle.question;
    }
}

TEST(NeedleFamilies, ParaphrasesShareNoContentWord) {
    const std::set<std::string> common = {"is",   "the",  "of",  "in", "at",
                                          "does", "what", "was", "s"};
    for (const Needle& needle : family_needles(true)) {
        if (needle.family != "paraphrase") continue;
        const auto asked = words_of(needle.question);
        for (const std::string& word : words_of(needle.needle)) {
            if (common.contains(word)) continue;
            EXPECT_EQ(std::find(asked.begin(), asked.end(), word), asked.end())
                << word << ": " << needle.question;
        }
    }
}

TEST(NeedleFamilies, ChainsAndDistractorsStandElsewhere) {
    for (const Needle& needle : family_needles(true)) {
        const std::size_t expected =
            needle.family == "two_hop" ? 1U : (needle.family == "distractors" ? 3U : 0U);
        EXPECT_EQ(needle.elsewhere.size(), expected) << needle.question;
    }
    const auto names = families_of(family_needles(false));
    EXPECT_EQ(std::count(names.begin(), names.end(), "distractors"), 8);
}

TEST_F(NeedleFile, ReadsTheFieldsAndFillsTheAnswer) {
    const auto needles = load(
        "{\"needle\": \"The sky over Zed is green.\", \"question\": \"What colour?\", "
        "\"real_needle\": \"Green\"}\n\n"
        "{\"needle\": \"a b\", \"question\": \"q\", \"real_needle\": \"b\", \"answer\": \"B it "
        "is\", \"key\": \"b\"}\n");
    ASSERT_TRUE(needles) << needles.error().message;
    ASSERT_EQ(needles->size(), 2U);
    EXPECT_EQ((*needles)[0].answer, "Green");
    EXPECT_EQ((*needles)[0].key, "");
    EXPECT_EQ((*needles)[1].answer, "B it is");
}

TEST_F(NeedleFile, NamesTheLineOfAMistake) {
    const std::string good = "{\"needle\": \"a b\", \"question\": \"q\", \"real_needle\": \"b\"}\n";
    for (const std::string& bad :
         {std::string("{\"needle\": \"a b\", \"real_needle\": \"b\"}\n"), std::string("[1]\n"),
          std::string("{\"needle\": \"a\n"),
          std::string("{\"needle\": \"a b\", \"question\": 3, \"real_needle\": \"b\"}\n"),
          std::string("{\"needle\": \"a b\", \"question\": \"q\", \"real_needle\": \"c\"}\n"),
          std::string("{\"needle\": \"\", \"question\": \"q\", \"real_needle\": \"c\"}\n"),
          std::string("{\"needle\": \"a b\", \"question\": \"q\", \"real_needle\": \"b\", "
                      "\"elsewhere\": [3]}\n"),
          std::string("{\"needle\": \"a b\", \"question\": \"q\", \"real_needle\": \"b\", "
                      "\"family\": \"\"}\n")}) {
        const auto needles = load(good + bad);
        ASSERT_FALSE(needles) << bad;
        EXPECT_EQ(needles.error().kind, ErrorKind::bad_input);
        EXPECT_NE(needles.error().message.find("line 2"), std::string::npos)
            << needles.error().message;
    }
    EXPECT_FALSE(load("\n"));
    EXPECT_FALSE(load_needles("no/such/file.jsonl"));
}

}  // namespace
}  // namespace headkv
