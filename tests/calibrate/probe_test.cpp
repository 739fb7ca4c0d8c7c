#include "calibrate/probe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "headkv/sampler.h"

namespace headkv {
namespace {

TEST(SentenceBorder, GoesBackToTheEndOfASentence) {
    const std::string text = "One two. Three 3.5 four? \"Five six!\" Seven";
    EXPECT_EQ(sentence_border(text, 0), 0U);
    EXPECT_EQ(sentence_border(text, 7), 0U);
    EXPECT_EQ(sentence_border(text, 8), 8U);
    EXPECT_EQ(sentence_border(text, 20), 8U);   // the point inside 3.5 ends nothing
    EXPECT_EQ(sentence_border(text, 24), 24U);  // "four?"
    EXPECT_EQ(sentence_border(text, 40), 36U);  // after the closing quote
    EXPECT_EQ(sentence_border(text, 1000), 36U);
    EXPECT_EQ(sentence_border("All of it.", 100), 10U);
    EXPECT_EQ(sentence_border("", 5), 0U);
}

TEST(InsertNeedle, BetweenSentences) {
    const std::string text = "One two. Three four.";
    EXPECT_EQ(insert_needle(text, "N.", 12), "One two. N. Three four.");
    EXPECT_EQ(insert_needle(text, "N.", 8), "One two. N. Three four.");
    EXPECT_EQ(insert_needle(text, "N.", 3), "N. One two. Three four.");
    EXPECT_EQ(insert_needle(text, "N.", 20), "One two. Three four. N.");
    EXPECT_EQ(insert_needle(text, "N.", 19), "One two. N. Three four.");
    EXPECT_EQ(insert_needle("", "N.", 0), "N.");
    EXPECT_EQ(insert_needle("A.\n\nB.", "N.", 4), "A. N.\n\nB.");
}

std::optional<TokenSpan> span_of(const std::vector<std::string>& pieces, std::string_view within,
                                 std::string_view part) {
    return find_span(pieces, within, part);
}

TEST(FindSpan, TokensThatHoldTheText) {
    const std::vector<std::string> pieces = {"<s>", "A", " b", "ig", " red", " fox", ".", " B"};
    const auto span = span_of(pieces, "big red fox.", "red fox");
    ASSERT_TRUE(span);
    EXPECT_EQ(span->begin, 4);
    EXPECT_EQ(span->end, 6);
    // A merge may cross the border: "fox." as one token belongs to the span.
    const auto merged = span_of({"A big", " re", "d", " fox."}, "big red fox.", "Red Fox");
    ASSERT_TRUE(merged);
    EXPECT_EQ(merged->begin, 1);
    EXPECT_EQ(merged->end, 4);
    // A token that shares only a blank with the text does not.
    const auto blank = span_of({"big", " ", "red"}, "big red", " red");
    ASSERT_TRUE(blank);
    EXPECT_EQ(blank->begin, 2);
    EXPECT_EQ(blank->end, 3);
}

TEST(FindSpan, LooksInsideTheNeedleOnly) {
    const std::vector<std::string> pieces = {" fox", " and", " a", " red", " fox", "!"};
    const auto span = span_of(pieces, "a red fox", "fox");
    ASSERT_TRUE(span);
    EXPECT_EQ(span->begin, 4);
    EXPECT_EQ(span->end, 5);
    EXPECT_FALSE(span_of(pieces, "a blue fox", "fox"));
    EXPECT_FALSE(span_of(pieces, "a red fox", "red cat"));
    EXPECT_FALSE(span_of(pieces, "a red fox", ""));
}

TEST(FindSpan, BytesOfACharacterInSeveralTokens) {
    const auto span = span_of({"caf", "\xc3", "\xa9", " x"}, "caf\xc3\xa9", "\xc3\xa9");
    ASSERT_TRUE(span);
    EXPECT_EQ(span->begin, 1);
    EXPECT_EQ(span->end, 3);
}

TEST(PlanProbes, EveryCombinationOnceAndShuffled) {
    const std::vector<std::int64_t> lengths = {100, 200};
    const std::vector<double> depths = {0, 50, 100};
    const auto probes = plan_probes(lengths, depths, 4, 9);
    std::set<std::tuple<std::int64_t, double, std::int64_t>> seen;
    for (const ProbeSpec& probe : probes) seen.insert({probe.length, probe.depth, probe.needle});
    EXPECT_EQ(probes.size(), 24U);
    EXPECT_EQ(seen.size(), 24U);
    const auto again = plan_probes(lengths, depths, 4, 9);
    EXPECT_TRUE(std::equal(
        probes.begin(), probes.end(), again.begin(), [](const ProbeSpec& a, const ProbeSpec& b) {
            return a.length == b.length && a.depth == b.depth && a.needle == b.needle;
        }));
    EXPECT_FALSE(
        std::is_sorted(probes.begin(), probes.end(),
                       [](const ProbeSpec& a, const ProbeSpec& b) { return a.length < b.length; }));
}

TEST(Balanced, FamiliesTakeTurns) {
    std::vector<ProbeSpec> probes;
    for (const std::int64_t needle : {0, 0, 0, 1, 2, 1, 2, 0}) probes.push_back({1, 2, needle});
    for (std::size_t i = 0; i < probes.size(); ++i) probes[i].length = static_cast<int>(i);
    const std::vector<std::string> families = {"b", "a", "c"};
    std::vector<std::int64_t> needles, lengths;
    for (const ProbeSpec& probe : balanced(probes, families)) {
        needles.push_back(probe.needle);
        lengths.push_back(probe.length);
    }
    EXPECT_EQ(needles, (std::vector<std::int64_t>{1, 0, 2, 1, 0, 2, 0, 0}));
    EXPECT_EQ(lengths, (std::vector<std::int64_t>{3, 0, 4, 5, 1, 6, 2, 7}));  // their own order
}

TEST(BestToken, FirstOfEqualLogits) {
    const std::vector<float> logits = {0.5F, 2.0F, 2.0F, -1.0F};
    EXPECT_EQ(best_token(logits), 1);
}

// A vocabulary of single characters: every byte of the text is a token.
Tokenizer letters() {
    Vocabulary vocabulary;
    vocabulary.model = "gpt2";
    vocabulary.pre = "gpt-2";
    for (char c = '!'; c <= '~'; ++c) vocabulary.tokens.emplace_back(1, c);
    vocabulary.tokens.emplace_back("\xc4\xa0");  // the byte-level alphabet's blank
    vocabulary.tokens.emplace_back("\xc4\x8a");  // and newline
    vocabulary.tokens.emplace_back("~~");  // a vocabulary must have a merge; no text here uses it
    vocabulary.merges = {"~ ~"};
    auto tokenizer = Tokenizer::create(std::move(vocabulary));
    EXPECT_TRUE(tokenizer) << tokenizer.error().message;
    return std::move(*tokenizer);
}

TEST(BuildDocument, HasTheLengthAndTheDepth) {
    const Tokenizer tokenizer = letters();
    const Haystack haystack = Haystack::builtin(4);
    const Needle needle = single_fact_needles()[3];
    std::size_t last = 0;
    for (const double depth : {0.0, 25.0, 50.0, 100.0}) {
        const std::string text = build_document(tokenizer, haystack, needle, {4000, depth, 3});
        const auto tokens = static_cast<std::int64_t>(tokenizer.encode(text).size());
        EXPECT_LE(tokens, 4001);
        EXPECT_GT(tokens, 3700);  // cut back to a whole sentence
        const std::size_t at = text.find(needle.needle);
        ASSERT_NE(at, std::string::npos);
        EXPECT_NEAR(static_cast<double>(at), 4000 * depth / 100, 300);
        EXPECT_TRUE(at == 0 || text.substr(at - 2, 2) == ". ") << text.substr(at - 10, 20);
        EXPECT_TRUE(depth == 0.0 || at > last);
        last = at;
        const auto ids = tokenizer.encode(text);
        const auto span = find_span(tokenizer, ids, needle.needle, needle.real_needle);
        ASSERT_TRUE(span);
        EXPECT_EQ(tokenizer.decode(std::span(ids).subspan(static_cast<std::size_t>(span->begin),
                                                          static_cast<std::size_t>(span->size()))),
                  needle.real_needle);
    }
    EXPECT_EQ(build_document(tokenizer, haystack, needle, {0, 50, 3}), needle.needle);
}

TEST(BuildDocument, FurtherSentencesStandElsewhere) {
    const Tokenizer tokenizer = letters();
    const Haystack haystack = Haystack::builtin(4);
    Needle needle = single_fact_needles()[3];
    needle.elsewhere = {"First hop.", "Second hop.", "Third hop."};
    const std::string text = build_document(tokenizer, haystack, needle, {4000, 60, 3});
    const auto share = [&](const std::string& part) {
        const std::size_t at = text.find(part);
        EXPECT_NE(at, std::string::npos) << part;
        EXPECT_EQ(text.find(part, at + 1), std::string::npos) << part;
        EXPECT_TRUE(at == 0 || text.substr(at - 2, 2) == ". ") << text.substr(at - 10, 20);
        return static_cast<double>(at) / static_cast<double>(text.size());
    };
    EXPECT_NEAR(share(needle.needle), 0.6, 0.08);
    EXPECT_NEAR(share("First hop."), 0.85, 0.08);
    EXPECT_NEAR(share("Second hop."), 0.1, 0.08);
    EXPECT_NEAR(share("Third hop."), 0.35, 0.08);
    const auto tokens = static_cast<std::int64_t>(tokenizer.encode(text).size());
    EXPECT_LE(tokens, 4004);
    EXPECT_GT(tokens, 3700);
    // Without filler all of them are there, the needle once.
    const std::string alone = build_document(tokenizer, haystack, needle, {0, 60, 3});
    for (const std::string& part : needle.elsewhere) {
        EXPECT_NE(alone.find(part), std::string::npos);
    }
    EXPECT_NE(alone.find(needle.needle), std::string::npos);
}

TEST(LineComplete, IgnoresLeadingBlanks) {
    const Tokenizer tokenizer = letters();
    const auto complete = [&](std::string_view text) {
        return line_complete(tokenizer, tokenizer.encode(text, false, false));
    };
    EXPECT_FALSE(complete(""));
    EXPECT_FALSE(complete("\n \n"));
    EXPECT_FALSE(complete("\nab"));
    EXPECT_TRUE(complete("\nab\n"));
    EXPECT_TRUE(complete("ab\ncd"));
}

TEST(Haystack, FolderErrorsNameTheFolder) {
    const auto missing = Haystack::folder("no/such/folder");
    ASSERT_FALSE(missing);
    EXPECT_NE(missing.error().message.find("no/such/folder"), std::string::npos);
}

}  // namespace
}  // namespace headkv
