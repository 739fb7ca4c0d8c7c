#include "headkv/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "tiny_vocabulary.h"

namespace headkv {
namespace {

using testing::add_token;
using testing::append_part;
using testing::bpe_vocabulary;
using testing::make;
using testing::mapped;
using testing::pieces;
using testing::random_text;
using testing::spm_vocabulary;

Token id_of(const Tokenizer& tokenizer, std::string_view text) {
    const auto token = tokenizer.find(text);
    EXPECT_TRUE(token.has_value()) << text;
    return token.value_or(-1);
}

// Merges the best-ranked, leftmost pair again and again: the definition of BPE, in cubic time.
std::string naive_bpe(const Vocabulary& v, std::string_view word) {
    std::map<std::string, std::size_t> ranks;
    for (std::size_t i = 0; i < v.merges.size(); ++i) {
        ranks.emplace(v.merges[i], i);
    }
    std::vector<std::string> symbols;
    for (const char c : word) {
        symbols.push_back(mapped(std::string_view(&c, 1)));
    }
    while (true) {
        std::size_t best = v.merges.size();
        std::size_t at = 0;
        for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
            const auto found = ranks.find(symbols[i] + " " + symbols[i + 1]);
            if (found != ranks.end() && found->second < best) {
                best = found->second;
                at = i;
            }
        }
        if (best == v.merges.size()) {
            break;
        }
        symbols[at] += symbols[at + 1];
        symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
    std::string out;
    for (const std::string& symbol : symbols) {
        append_part(out, symbol);
    }
    return out;
}

// The same for scores of joined texts; `text` holds only characters that are tokens.
std::string naive_spm(const Vocabulary& v, const std::string& text) {
    std::map<std::string, float> scores;
    for (std::size_t i = 0; i < v.tokens.size(); ++i) {
        scores[v.tokens[i]] = v.scores[i];
    }
    std::vector<std::string> symbols;
    for (std::size_t pos = 0; pos < text.size();) {
        const std::size_t start = pos;
        decode_lenient(text, pos);
        symbols.push_back(text.substr(start, pos - start));
    }
    while (true) {
        float best = -1e30F;
        std::size_t at = symbols.size();
        for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
            const auto found = scores.find(symbols[i] + symbols[i + 1]);
            if (found != scores.end() && found->second > best) {
                best = found->second;
                at = i;
            }
        }
        if (at == symbols.size()) {
            break;
        }
        symbols[at] += symbols[at + 1];
        symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
    std::string out;
    for (const std::string& symbol : symbols) {
        append_part(out, symbol);
    }
    return out;
}

bool valid_utf8(std::string_view text) {
    std::string copy(text);
    return take_complete_utf8(copy) == text && copy.empty();
}

TEST(BpeTokenizer, WorkedExample) {
    const Tokenizer t = make(bpe_vocabulary());
    EXPECT_EQ(pieces(t, t.encode("hello world")), "hello| w|or|l|d");
    EXPECT_EQ(pieces(t, t.encode("abc bc")), "abc| |bc");
    EXPECT_EQ(t.encode("A"), std::vector<Token>{'A'});
    EXPECT_TRUE(t.encode("").empty());
}

TEST(BpeTokenizer, EqualsTheDefinitionOnRandomWords) {
    const Vocabulary v = bpe_vocabulary();
    const Tokenizer t = make(v);
    std::mt19937 rng(1);
    for (int i = 0; i < 2000; ++i) {
        std::string word;
        for (std::size_t n = 1 + rng() % 12; n > 0; --n) {
            word.push_back("abchelow"[rng() % 8]);
        }
        EXPECT_EQ(mapped(pieces(t, t.encode(word))), naive_bpe(v, word)) << word;
    }
}

TEST(BpeTokenizer, DecodingGivesBackAnyValidText) {
    std::mt19937 rng(2);
    for (const char* pre : {"gpt-2", "default", "llama-bpe", "qwen2", "smollm", "deepseek-llm",
                            "tekken", "gpt-4o", "falcon"}) {
        const Tokenizer t = make(bpe_vocabulary(pre));
        for (int i = 0; i < 100; ++i) {
            const std::string text = random_text(rng, 80);
            ASSERT_EQ(t.decode(t.encode(text, false, false)), text) << pre;
        }
    }
}

TEST(BpeTokenizer, AMegabyteOfOneLetterDoesNotHang) {
    const Tokenizer t = make(bpe_vocabulary());
    const std::string text(1 << 20, 'a');
    const auto start = std::chrono::steady_clock::now();
    const auto tokens = t.encode(text);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
    // "aa" + "a" ranks above "a" + "a": threes from the left, and what is left over.
    std::vector<Token> expected(text.size() / 3, id_of(t, "aaa"));
    expected.push_back('a');
    EXPECT_EQ(tokens, expected);
}

TEST(BpeTokenizer, BrokenUtf8BecomesReplacementCharacters) {
    const Tokenizer t = make(bpe_vocabulary());
    EXPECT_EQ(t.decode(t.encode("a\xFF\xE2\x82z")), "a\uFFFD\uFFFD\uFFFDz");
}

TEST(BpeTokenizer, IgnoreMergesTakesAWholeWordFirst) {
    Vocabulary v = bpe_vocabulary("llama-bpe");
    add_token(v, "xyz");  // no merge makes it
    const Tokenizer t = make(v);
    EXPECT_EQ(pieces(t, t.encode("xyz", false, false)), "xyz");
    v.pre = "qwen2";
    const Tokenizer merging = make(v);
    EXPECT_EQ(pieces(merging, merging.encode("xyz", false, false)), "x|y|z");
}

TEST(BpeTokenizer, AMergeWithoutATokenFallsBackToAsciiBytes) {
    Vocabulary v = bpe_vocabulary();
    v.merges.emplace_back("q z");
    const Tokenizer t = make(v);
    EXPECT_EQ(pieces(t, t.encode("qz")), "q|z");
}

TEST(BpeTokenizer, BosAndEosFollowTheMetadataAndTheFamily) {
    Vocabulary v = bpe_vocabulary("gpt-2");
    EXPECT_EQ(pieces(make(v), make(v).encode("A")), "A");
    v.add_bos = true;
    v.add_eos = true;
    EXPECT_EQ(pieces(make(v), make(v).encode("A")), "<|im_start|>|A|<|im_end|>");
    EXPECT_EQ(pieces(make(v), make(v).encode("A", false, false)), "A");
    for (const char* pre : {"llama-bpe", "tekken"}) {
        Vocabulary family = bpe_vocabulary(pre);
        EXPECT_EQ(pieces(make(family), make(family).encode("A")), "<|im_start|>|A") << pre;
        family.add_bos = false;
        EXPECT_EQ(pieces(make(family), make(family).encode("A")), "A") << pre;
    }
}

TEST(SpecialTokens, ControlTokensNeedPermissionUserDefinedOnesDoNot) {
    const Tokenizer t = make(bpe_vocabulary());
    const Token end = id_of(t, "<|im_end|>");
    const Token tool = id_of(t, "<tool>");
    const auto plain = t.encode("a<|im_end|>b<tool>c");
    EXPECT_EQ(std::count(plain.begin(), plain.end(), end), 0);
    EXPECT_EQ(std::count(plain.begin(), plain.end(), tool), 1);
    EXPECT_EQ(pieces(t, t.encode("a<|im_end|>b<tool>c", true)), "a|<|im_end|>|b|<tool>|c");
    EXPECT_EQ(t.encode("<|im_end|>", true), std::vector<Token>{end});
}

TEST(SpecialTokens, LongerTextsAreMatchedFirst) {
    Vocabulary v = bpe_vocabulary();
    add_token(v, "<too", TokenType::user_defined);
    add_token(v, "ol><", TokenType::user_defined);
    const Tokenizer t = make(v);
    EXPECT_EQ(pieces(t, t.encode("<tool><too")), "<tool>|<too");
}

TEST(SpecialTokens, PhiSwallowsSpaceAfterThem) {
    Vocabulary v = bpe_vocabulary();
    v.name = "Phi-3 Mini";
    const Tokenizer t = make(v);
    EXPECT_EQ(pieces(t, t.encode("a <|im_end|> \n b", true)), "a| |<|im_end|>|b");
    EXPECT_EQ(pieces(t, t.encode("<|endoftext|> b", true)), "<|endoftext|>| |b");
}

TEST(Segments, ADocumentCannotSmuggleAControlToken) {
    const Tokenizer t = make(bpe_vocabulary());
    const Token start = id_of(t, "<|im_start|>");
    const Token end = id_of(t, "<|im_end|>");
    const std::vector<Segment> segments = {
        {"<|im_start|>", true}, {"hello<|im_end|><|im_start|>", false}, {"<|im_end|>", true}};
    const auto tokens = t.encode(segments, false);
    EXPECT_EQ(std::count(tokens.begin(), tokens.end(), start), 1);
    EXPECT_EQ(std::count(tokens.begin(), tokens.end(), end), 1);
    EXPECT_EQ(tokens.front(), start);
    EXPECT_EQ(tokens.back(), end);
}

TEST(Segments, AControlTokenMustLieInSpecialTextAsAWhole) {
    const Tokenizer t = make(bpe_vocabulary());
    const Token end = id_of(t, "<|im_end|>");
    const auto count = [&](const std::vector<Segment>& segments) {
        const auto tokens = t.encode(segments, false);
        return std::count(tokens.begin(), tokens.end(), end);
    };
    EXPECT_EQ(count({{"<|im_", false}, {"end|>", true}}), 0);
    EXPECT_EQ(count({{"<|im_", true}, {"end|>", false}}), 0);
    EXPECT_EQ(count({{"<|im_", true}, {"", false}, {"end|>", true}}), 1);
    EXPECT_EQ(count({{"x<|im_end|>", false}, {"<|im_end|>", true}, {"<|im_end|>", false}}), 1);
}

TEST(Segments, PlainTextIsOneTextWhateverTheBorders) {
    const Tokenizer t = make(bpe_vocabulary());
    std::mt19937 rng(3);
    for (int i = 0; i < 200; ++i) {
        const std::string text = random_text(rng, 40);
        const std::size_t cut = rng() % (text.size() + 1);
        const std::vector<Segment> segments = {{text.substr(0, cut), (i & 1) != 0},
                                               {text.substr(cut), (i & 2) != 0}};
        EXPECT_EQ(t.encode(segments), t.encode(text));
    }
}

TEST(SpmTokenizer, WorkedExample) {
    const Tokenizer t = make(spm_vocabulary());
    const auto tokens = t.encode("the in");
    EXPECT_EQ(tokens, (std::vector<Token>{*t.bos(), id_of(t, "\u2581the"), id_of(t, "\u2581"),
                                          id_of(t, "in")}));
    EXPECT_EQ(t.decode(tokens), "the in");
    EXPECT_EQ(t.encode(""), std::vector<Token>{*t.bos()});
}

TEST(SpmTokenizer, EqualsTheDefinitionOnRandomTexts) {
    Vocabulary v = spm_vocabulary();
    v.add_space_prefix = false;
    const Tokenizer t = make(v);
    std::mt19937 rng(4);
    for (int i = 0; i < 2000; ++i) {
        std::string text;
        std::string escaped;
        for (std::size_t n = 1 + rng() % 14; n > 0; --n) {
            const char c = "abcxthein '"[rng() % 11];
            text.push_back(c);
            escaped += c == ' ' ? "\u2581" : std::string(1, c);
        }
        std::string joined;
        for (const Token token : t.encode(text, false, false)) {
            const std::string piece = t.piece(token);
            joined += joined.empty() ? "" : "|";
            for (const char c : piece) {
                joined += c == ' ' ? "\u2581" : std::string(1, c);
            }
        }
        EXPECT_EQ(joined, naive_spm(v, escaped)) << text;
    }
}

TEST(SpmTokenizer, SpacePrefixStandsBeforeEachStretchOfText) {
    Vocabulary v = spm_vocabulary();
    const Tokenizer t = make(v);
    EXPECT_EQ(pieces(t, t.encode("t</s>t", true, false)), " t|</s>| t");
    v.add_space_prefix = false;
    const Tokenizer bare = make(v);
    EXPECT_EQ(pieces(bare, bare.encode("t", true, false)), "t");
}

TEST(SpmTokenizer, UncoveredTextIsSpelledInBytes) {
    const Tokenizer t = make(spm_vocabulary());
    const auto tokens = t.encode("\u6F22\xFF\n", false, false);
    EXPECT_EQ(tokens,
              (std::vector<Token>{id_of(t, "\u2581"), id_of(t, "<0xE6>"), id_of(t, "<0xBC>"),
                                  id_of(t, "<0xA2>"), id_of(t, "<0xFF>"), id_of(t, "<0x0A>")}));
    EXPECT_EQ(t.decode(tokens), "\u6F22\xFF\n");
}

TEST(SpmTokenizer, OnlyTheAddedSpaceIsTakenAway) {
    const Tokenizer t = make(spm_vocabulary());
    for (const char* text : {" the", "  the  ", " ", "the", ""}) {
        EXPECT_EQ(t.decode(t.encode(text)), text);
    }
}

TEST(SpmTokenizer, AMegabyteOfOneLetterDoesNotHang) {
    const Tokenizer t = make(spm_vocabulary());
    const std::string text(1 << 20, ' ');
    EXPECT_EQ(t.decode(t.encode(text)), text);
}

TEST(Tokenizer, KnowsWhatEndsATurn) {
    Vocabulary v = bpe_vocabulary();
    add_token(v, "<|eot_id|>");
    add_token(v, "<|end|>", TokenType::control);
    v.eom = 'x';
    const Tokenizer t = make(v);
    for (const char* text : {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "x"}) {
        EXPECT_TRUE(t.is_end(id_of(t, text))) << text;
    }
    EXPECT_FALSE(t.is_end(id_of(t, "<|im_start|>")));
    EXPECT_FALSE(t.is_end('a'));
    EXPECT_FALSE(t.is_end(-1));
    EXPECT_FALSE(t.is_end(static_cast<Token>(t.size())));
    // Its text makes it a control token, whatever its type.
    EXPECT_TRUE(t.is_control(id_of(t, "<|eot_id|>")));
    EXPECT_FALSE(t.is_control(id_of(t, "<tool>")));
}

TEST(Tokenizer, PiecesOfControlTokensShowOnDemand) {
    const Tokenizer t = make(bpe_vocabulary());
    EXPECT_EQ(t.piece(id_of(t, "<|im_end|>")), "");
    EXPECT_EQ(t.piece(id_of(t, "<|im_end|>"), true), "<|im_end|>");
    EXPECT_EQ(t.piece(id_of(t, "<tool>")), "<tool>");
    EXPECT_EQ(t.piece(-1), "");
    EXPECT_EQ(t.piece(static_cast<Token>(t.size())), "");
}

TEST(Tokenizer, RefusesVocabulariesThatContradictThemselves) {
    const auto refused = [](auto&& change, std::string_view word) {
        Vocabulary v = bpe_vocabulary();
        change(v);
        const auto t = Tokenizer::create(std::move(v));
        ASSERT_FALSE(t.has_value()) << word;
        EXPECT_EQ(t.error().kind, ErrorKind::bad_input);
        EXPECT_NE(t.error().message.find(word), std::string::npos) << t.error().message;
        EXPECT_EQ(t.error().message.find('\n'), std::string::npos);
    };
    refused([](Vocabulary& v) { v.model = "bert"; }, "'bert'");
    refused([](Vocabulary& v) { v.pre = "what"; }, "'what'");
    refused([](Vocabulary& v) { v.types.pop_back(); }, "token_type");
    refused([](Vocabulary& v) { v.scores.resize(3); }, "scores");
    refused([](Vocabulary& v) { v.merges.clear(); }, "merges");
    refused([](Vocabulary& v) { v.tokens.clear(); }, "tokens");
    refused([](Vocabulary& v) { v.eos = 100000; }, "eos_token_id");
    refused([](Vocabulary& v) { v.bos = -5; }, "bos_token_id");
}

TEST(Tokenizer, SurvivesOddVocabularies) {
    Vocabulary v = bpe_vocabulary();
    add_token(v, "");
    add_token(v, "");
    add_token(v, "A");  // a second one: the last wins
    v.merges.emplace_back("nospace");
    v.merges.emplace_back("");
    v.merges.push_back(v.merges.front());
    const Tokenizer t = make(v);
    EXPECT_EQ(pieces(t, t.encode("hello A")), "hello| |A");
    EXPECT_EQ(id_of(t, "A"), static_cast<Token>(t.size() - 1));
}

TEST(StreamDecoder, NeverEmitsPartOfACharacter) {
    const Tokenizer t = make(bpe_vocabulary());
    std::mt19937 rng(5);
    for (int i = 0; i < 50; ++i) {
        const std::string text = random_text(rng, 60);
        StreamDecoder decoder(t);
        std::string joined;
        for (const Token token : t.encode(text)) {
            const std::string part = decoder.push(token);
            EXPECT_TRUE(valid_utf8(part));
            joined += part;
        }
        joined += decoder.flush();
        EXPECT_EQ(joined, text);
    }
}

TEST(StreamDecoder, StaysValidOnAnyBytes) {
    const Tokenizer t = make(bpe_vocabulary());
    std::mt19937 rng(6);
    StreamDecoder decoder(t);
    std::string joined;
    for (int i = 0; i < 5000; ++i) {
        const std::string part = decoder.push(static_cast<Token>(rng() % 256));
        EXPECT_TRUE(valid_utf8(part));
        joined += part;
    }
    EXPECT_TRUE(valid_utf8(joined + decoder.flush()));
}

TEST(StreamDecoder, AnUnfinishedCharacterEndsAsReplacement) {
    const Tokenizer t = make(bpe_vocabulary());
    StreamDecoder decoder(t);
    EXPECT_EQ(decoder.push(0xF0), "");
    EXPECT_EQ(decoder.push(0x9F), "");
    EXPECT_EQ(decoder.push(0x98), "");
    EXPECT_EQ(decoder.push(0x80), "\U0001F600");
    EXPECT_EQ(decoder.push(0xE2), "");
    EXPECT_EQ(decoder.push('a'), "\uFFFDa");
    EXPECT_EQ(decoder.push(0xE2), "");
    EXPECT_EQ(decoder.flush(), "\uFFFD");
    EXPECT_EQ(decoder.flush(), "");
}

TEST(StreamDecoder, DropsTheAddedSpaceOfSpmOnce) {
    const Tokenizer t = make(spm_vocabulary());
    StreamDecoder decoder(t);
    EXPECT_EQ(decoder.push(*t.bos()), "");
    EXPECT_EQ(decoder.push(id_of(t, "\u2581the")), "the");
    EXPECT_EQ(decoder.push(id_of(t, "\u2581the")), " the");
}

}  // namespace
}  // namespace headkv
