#include "calibrate/needles.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

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
    for (const auto needles : {single_fact_needles(), comparison_needles()}) {
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
        const std::string name = needle.answer.substr(0, needle.answer.find('\''));
        const auto age_of = [&](const std::string& who) {
            const std::size_t at = needle.needle.find(who + " is ");
            EXPECT_NE(at, std::string::npos) << who;
            return std::stoi(needle.needle.substr(at + who.size() + 4));
        };
        const std::size_t between = needle.question.find("between ") + 8;
        const std::size_t conjunction = needle.question.find(" and ", between);
        const std::string a = needle.question.substr(between, conjunction - between);
        const std::string b =
            needle.question.substr(conjunction + 5, needle.question.size() - conjunction - 6);
        const bool older = needle.question.find("older") != std::string::npos;
        EXPECT_EQ(name, (age_of(a) > age_of(b)) == older ? a : b);
        first += needle.needle.starts_with(name) ? 1 : 0;
    }
    // Which person comes first says nothing about the answer.
    EXPECT_EQ(first * 2, comparison_needles().size());
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
          std::string("{\"needle\": \"\", \"question\": \"q\", \"real_needle\": \"c\"}\n")}) {
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
