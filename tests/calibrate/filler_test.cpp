#include "calibrate/filler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <set>
#include <string>
#include <vector>

#include "calibrate/haystack.h"
#include "calibrate/needles.h"

namespace headkv {
namespace {

std::vector<std::string> sentences(const std::string& text) {
    std::vector<std::string> found;
    std::size_t start = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '.') continue;
        found.push_back(text.substr(start, i + 1 - start));
        start = std::min(text.size(), text.find_first_not_of(" \n", i + 1));
    }
    return found;
}

TEST(Filler, SameSeedSameText) {
    EXPECT_EQ(filler_text(7, 20000), filler_text(7, 20000));
    EXPECT_NE(filler_text(7, 20000), filler_text(8, 20000));
}

TEST(Filler, IsPinned) {
    // The words themselves are part of the settings of a calibration: a change must be deliberate.
    EXPECT_EQ(hash_text(filler_text(1, 5000)), 0x41707c138102d586ULL);
}

TEST(Filler, LongerTextBeginsWithTheShorter) {
    const std::string small = filler_text(3, 1000);
    EXPECT_EQ(filler_text(3, 30000).substr(0, small.size()), small);
}

TEST(Filler, IsLongEnoughAndEndsWithASentence) {
    for (const std::size_t bytes : {1U, 100U, 999U, 50000U}) {
        const std::string text = filler_text(5, bytes);
        EXPECT_GE(text.size(), bytes);
        EXPECT_LT(text.size(), bytes + 400);
        EXPECT_EQ(text.back(), '.');
    }
    EXPECT_TRUE(filler_text(5, 0).empty());
}

void expect_sentences(const std::string& text) {
    EXPECT_EQ(std::count_if(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; }),
              0);
    EXPECT_EQ(text.find_first_of("{}"), std::string::npos);
    EXPECT_EQ(text.find(" a a"), std::string::npos);
    const auto all = sentences(text);
    EXPECT_GT(all.size(), 500U);
    EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), all.size());
    for (const std::string& sentence : all) {
        EXPECT_TRUE(std::isupper(static_cast<unsigned char>(sentence[0])) != 0) << sentence;
    }
}

TEST(Filler, NoSentenceTwiceNoDigitNoBrace) {
    expect_sentences(filler_text(11, 60000));
    expect_sentences(filler_text(11, 60000, Prose::city));
}

TEST(Filler, HoldsNoKey) {
    const std::string text =
        filler_text(1, 100000) + filler_text(1000001, 100000) + filler_text(1, 100000, Prose::city);
    const auto steps = family_needles(true);
    for (const auto needles : {single_fact_needles(), comparison_needles(), evaluation_needles(),
                               std::span<const Needle>(steps)}) {
        for (const Needle& needle : needles) {
            EXPECT_EQ(find_ignoring_case(text, needle.key), std::string::npos) << needle.key;
        }
    }
}

}  // namespace
}  // namespace headkv
