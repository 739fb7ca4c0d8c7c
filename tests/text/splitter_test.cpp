#include "text/splitter.h"

#include <gtest/gtest.h>

#include "text/pretokenizers.h"
#include "tiny_vocabulary.h"

namespace headkv {
namespace {

using testing::random_text;

const std::vector<std::string> all_names = {
    "",          "default",      "gpt-2",          "llama-bpe",   "dbrx",
    "glm4",      "qwen2",        "qwen35",         "smollm",      "starcoder",
    "falcon",    "deepseek-llm", "deepseek-coder", "deepseek-v3", "spark2_5",
    "tekken",    "gpt-4o",       "jais-2",         "bailingmoe",  "seed-coder",
    "bloom",     "viking",       "chameleon",      "minicpm5",    "laguna",
    "ufakzeka",  "falcon3",      "command-r",      "olmo",        "mpt",
    "stablelm2", "jina-v2-code", "refact",         "phi-2",       "chatglm-bpe"};

Splitter splitter(const std::string& name) {
    auto pre = pre_tokenizer(name);
    EXPECT_TRUE(pre.has_value());
    auto created = Splitter::create(pre->patterns);
    EXPECT_TRUE(created.has_value()) << created.error().message;
    return std::move(*created);
}

// The pieces joined by '|'.
std::string pieces(const std::string& name, std::string_view text) {
    SplitText split;
    prepare_split_text(text, split);
    std::string out;
    std::size_t begin = 0;
    for (const std::size_t end : splitter(name).split(split.shadow)) {
        testing::append_part(out, split.text.substr(begin, end - begin));
        begin = end;
    }
    return out;
}

TEST(Splitter, Gpt2KeepsTheSpaceBeforeAWord) {
    EXPECT_EQ(pieces("gpt-2", "I'm  here, 1234!?"), "I|'m| | here|,| 1234|!?");
    EXPECT_EQ(pieces("gpt-2", "a\n\nb  "), "a|\n|\n|b|  ");
    EXPECT_EQ(pieces("gpt-2", "IT'S"), "IT|'|S");
}

TEST(Splitter, Llama3GroupsThreeDigitsAndIgnoresTheCaseOfContractions) {
    EXPECT_EQ(pieces("llama-bpe", "IT'S 12345"), "IT|'S| |123|45");
    EXPECT_EQ(pieces("llama-bpe", "a  \n \n b"), "a|  \n \n| b");
    EXPECT_EQ(pieces("llama-bpe", "x!!\n\ny"), "x|!!\n\n|y");
    EXPECT_EQ(pieces("llama-bpe", "(word"), "(word");
    // A long s is not an s.
    EXPECT_EQ(pieces("llama-bpe", "a'\u017F"), "a|'\u017F");
}

TEST(Splitter, QwenAndSmolLmTakeDigitsOneByOne) {
    EXPECT_EQ(pieces("qwen2", "v12 3"), "v|1|2| |3");
    EXPECT_EQ(pieces("smollm", "v12 3"), "v|1|2| |3");
}

TEST(Splitter, PatternsAfterTheFirstSeeOnlyTheirPiece) {
    // The lone space before the digit ends its piece, so that nothing follows it there.
    EXPECT_EQ(pieces("smollm", "a  1"), "a|  |1");
    EXPECT_EQ(pieces("gpt-2", "a  1"), "a| | 1");
}

TEST(Splitter, CasedFamiliesCutWhereTheCaseChanges) {
    EXPECT_EQ(pieces("tekken", "HelloWorld"), "Hello|World");
    EXPECT_EQ(pieces("gpt-4o", "HTTPServer's 2024"), "HTTPServer's| |202|4");
    EXPECT_EQ(pieces("tekken", "\u00C9t\u00C9"), "\u00C9t\u00C9");
}

TEST(Splitter, OtherFamilies) {
    EXPECT_EQ(pieces("deepseek-llm", "a b\n\u6F22\u5B5712"), "a| b|\n|\u6F22\u5B57|12");
    EXPECT_EQ(pieces("deepseek-coder", "ab 12."), "ab| |1|2|.");
    EXPECT_EQ(pieces("deepseek-v3", "x12345"), "x|123|45");
    EXPECT_EQ(pieces("falcon", "a:1234"), "a|:|123|4");
    EXPECT_EQ(pieces("default", "a$b"), "a|$|b");
    EXPECT_EQ(pieces("bailingmoe", "a1 \n\nb"), "a|1| \n\n|b");
    EXPECT_EQ(pieces("viking", "ab, 12"), "ab|,| |1|2");
}

TEST(Splitter, ClassesFollowUnicode15WhateverPcre2Knows) {
    EXPECT_EQ(pieces("qwen2", "\U0002EBF0\U00031350!"), "\U0002EBF0\U00031350|!");
    EXPECT_EQ(pieces("qwen2", "\U0001E4F0\U0001E4F1"), "\U0001E4F0|\U0001E4F1");
    EXPECT_EQ(pieces("qwen2", "\U0001FAE8\U0001F6DC"), "\U0001FAE8\U0001F6DC");
    // U+180E is a format character, U+0085 and U+3000 are spaces.
    EXPECT_EQ(pieces("gpt-2", "\u180E!"), "\u180E!");
    EXPECT_EQ(pieces("gpt-2", "\u0085!"), "\u0085|!");
    EXPECT_EQ(pieces("gpt-2", "\u3000!"), "\u3000|!");
}

TEST(Splitter, PiecesOfEveryFamilyCoverTheText) {
    std::mt19937 rng(7);
    for (const std::string& name : all_names) {
        const Splitter cutter = splitter(name);
        for (int i = 0; i < 30; ++i) {
            const std::string text = random_text(rng, 60);
            SplitText split;
            prepare_split_text(text, split);
            std::size_t begin = 0;
            for (const std::size_t end : cutter.split(split.shadow)) {
                ASSERT_LT(begin, end) << name;
                std::size_t pos = begin;
                while (pos < end) {
                    decode_lenient(split.text, pos);
                }
                ASSERT_EQ(pos, end) << name << ": a piece ends inside of a character";
                begin = end;
            }
            ASSERT_EQ(begin, text.size()) << name;
        }
    }
}

TEST(Splitter, LongRunsAreNoProblem) {
    for (const std::string& name : all_names) {
        const Splitter cutter = splitter(name);
        for (const char* unit : {" ", "\n", "a", "A", "7", "!", "\u00E9", " a", "aB"}) {
            std::string text;
            while (text.size() < 200'000) {
                text += unit;
            }
            const auto ends = cutter.split(text);
            ASSERT_FALSE(ends.empty());
            EXPECT_EQ(ends.back(), text.size()) << name;
        }
    }
}

TEST(PreTokenizer, UnknownNameListsTheKnownOnes) {
    const auto pre = pre_tokenizer("qwen-2000");
    ASSERT_FALSE(pre.has_value());
    EXPECT_EQ(pre.error().kind, ErrorKind::bad_input);
    EXPECT_NE(pre.error().message.find("'qwen-2000'"), std::string::npos);
    EXPECT_NE(pre.error().message.find("llama-bpe"), std::string::npos);
}

TEST(SplitText, BrokenBytesBecomeReplacementCharacters) {
    SplitText split;
    prepare_split_text("a\xE2\x82z\xFF", split);
    EXPECT_EQ(split.text, "a\uFFFD\uFFFDz\uFFFD");
    // Overlong forms are re-encoded, surrogates kept.
    prepare_split_text("\xC1\x81\xED\xA0\x80", split);
    EXPECT_EQ(split.text, "A\xED\xA0\x80");
    EXPECT_EQ(split.shadow.size(), split.text.size());
}

}  // namespace
}  // namespace headkv
