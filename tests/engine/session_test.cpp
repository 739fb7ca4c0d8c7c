#include "headkv/session.h"

#include "engine/fixture.h"
#include "engine/sentences.h"

namespace headkv::test {
namespace {

struct SessionTest : testing::Test {
    // A prompt in a full cache: generate() then repeats itself exactly.
    SequenceId start(std::span<const Token> prompt) {
        MethodConfig config;
        config.method = "full";
        auto result = tiny.engine->prefill(prompt, {&config, 1});
        EXPECT_TRUE(result) << (result ? "" : result.error().message);
        logits = std::move(result->logits);
        return result->sequences[0];
    }

    Generation run(const GenerateOptions& options, const TextSink& sink = {}) {
        const auto prompt = random_tokens(40, 3);
        const SequenceId sequence = start(prompt);
        auto result = generate(*tiny.engine, sequence, logits, options, sink);
        EXPECT_TRUE(result) << (result ? "" : result.error().message);
        tiny.engine->release(sequence);
        return *result;
    }

    // Random weights repeat themselves when greedy; drawn tokens give a text with variety.
    static GenerateOptions drawn(std::int64_t tokens) {
        GenerateOptions options;
        options.max_tokens = tokens;
        options.sampler.temperature = 1.5F;
        options.sampler.top_k = 0;
        options.sampler.top_p = 1;
        options.sampler.min_p = 0;
        options.sampler.seed = 4;
        return options;
    }

    TinyPair tiny{TinyModel{}};
    std::vector<float> logits;
};

TEST_F(SessionTest, StreamsExactlyItsText) {
    std::string streamed;
    const auto result = run(drawn(60), [&](std::string_view piece) {
        streamed += piece;
        return true;
    });
    EXPECT_FALSE(result.text.empty());
    EXPECT_EQ(streamed, result.text);
    EXPECT_LE(result.tokens.size(), 60U);
    EXPECT_EQ(result.stop_reason, result.tokens.size() == 60 ? "length" : "end");
    for (const Token token : result.tokens) EXPECT_FALSE(tiny.model->tokenizer().is_end(token));
}

TEST_F(SessionTest, NoTokensWereAskedFor) {
    const auto result = run(drawn(0));
    EXPECT_TRUE(result.tokens.empty());
    EXPECT_EQ(result.stop_reason, "length");
}

TEST_F(SessionTest, AStopTextEndsTheAnswerAndIsNeverShown) {
    const std::string whole = run(drawn(60)).text;
    // Every stretch of the text as a stop text, odd lengths across token borders included.
    for (std::size_t length : {1U, 2U, 3U, 5U, 9U}) {
        for (std::size_t at = 0; at + length <= whole.size() && at < 30; at += 3) {
            GenerateOptions options = drawn(60);
            options.stop = {"never in there \x01", whole.substr(at, length), ""};
            std::string streamed;
            const auto result = run(options, [&](std::string_view piece) {
                streamed += piece;
                return true;
            });
            EXPECT_EQ(result.stop_reason, "stop");
            EXPECT_EQ(result.text, whole.substr(0, whole.find(options.stop[1])));
            EXPECT_EQ(streamed, result.text);
        }
    }
}

TEST_F(SessionTest, TextThatOnlyBeginsAStopTextIsShownInTheEnd) {
    const std::string whole = run(drawn(20)).text;
    GenerateOptions options = drawn(20);
    options.stop = {whole.substr(whole.size() - 1) + "never follows"};
    EXPECT_EQ(run(options).text, whole);
}

TEST_F(SessionTest, TheSinkStopsTheAnswer) {
    int calls = 0;
    const auto result = run(drawn(60), [&](std::string_view) { return ++calls < 5; });
    EXPECT_EQ(result.stop_reason, "interrupted");
    EXPECT_EQ(result.tokens.size(), 5U);
}

TEST_F(SessionTest, AnUnknownSequenceIsAnError) {
    const auto prompt = random_tokens(10, 3);
    const SequenceId sequence = start(prompt);
    tiny.engine->release(sequence);
    EXPECT_FALSE(generate(*tiny.engine, sequence, logits, drawn(4)));
}

TEST_F(SessionTest, PromptsHoldDocumentAndQuestion) {
    const auto& tokenizer = tiny.model->tokenizer();
    const auto text = [&](std::string_view document, std::string_view question,
                          std::optional<ChatTemplate> chat, std::string_view system = {}) {
        const auto tokens = question_prompt(*tiny.model, document, question, chat, system);
        return tokens ? tokenizer.decode(*tokens, true) : tokens.error().message;
    };
    const auto ends_with = [](const std::string& whole, std::string_view end) {
        return whole.ends_with(end);
    };
    EXPECT_TRUE(ends_with(text("doc", "why", {}), "doc\n\nQuestion: why\nAnswer:"));
    EXPECT_TRUE(ends_with(text("doc", "", {}), "doc"));
    EXPECT_TRUE(ends_with(text("", "why", {}), "why\nAnswer:"));
    const std::string chat = text("doc", "why", ChatTemplate::chatml, "be kind");
    EXPECT_NE(chat.find("be kind"), std::string::npos) << chat;
    EXPECT_NE(chat.find("doc\n\nQuestion: why"), std::string::npos) << chat;
    EXPECT_TRUE(ends_with(chat, "assistant\n")) << chat;
    EXPECT_FALSE(question_prompt(*tiny.model, "", "", {}));
}

TEST_F(SessionTest, TheQuestionIsFoundInItsPrompt) {
    const auto& tokenizer = tiny.model->tokenizer();
    const std::string document = "Some text. It has a question? None so far.";
    for (const std::string question : {"why", "0 or 1?", "Where is it kept?"}) {
        for (const auto chat : {std::optional<ChatTemplate>(), std::optional(ChatTemplate::chatml),
                                std::optional(ChatTemplate::llama3)}) {
            const auto prompt = question_prompt(*tiny.model, document, question, chat).value();
            const auto part = question_part(*tiny.model, document, question, chat);
            const auto found =
                std::span(prompt).last(static_cast<std::size_t>(part.tokens + part.tail));
            const auto text =
                tokenizer.decode(found.first(static_cast<std::size_t>(part.tokens)), true);
            EXPECT_NE(text.find(question), std::string::npos) << text;
            EXPECT_LE(text.size(), question.size() + 2) << text;  // a blank that was merged
            EXPECT_GT(part.tail, 0);
        }
    }
    EXPECT_EQ(question_part(*tiny.model, "", "why", {}), QuestionPart());
    EXPECT_EQ(question_part(*tiny.model, document, "", {}), QuestionPart());
}

TEST_F(SessionTest, SentencesBeginBehindMarksLinesAndControlTokens) {
    const auto& tokenizer = tiny.model->tokenizer();
    const auto parts = [&](std::string_view text, bool special = false) {
        const auto tokens = tokenizer.encode(text, special, false);
        const auto starts = sentence_starts(tokenizer, tokens);
        std::vector<std::string> said;
        for (std::size_t i = 0; i < starts.size(); ++i) {
            const auto end = i + 1 < starts.size() ? starts[i + 1] : std::ssize(tokens);
            said.push_back(tokenizer.decode(
                std::span(tokens).subspan(static_cast<std::size_t>(starts[i]),
                                          static_cast<std::size_t>(end - starts[i])),
                true));
        }
        return said;
    };
    using Parts = std::vector<std::string>;
    EXPECT_EQ(parts("One. Two 3.5 e.g.this! Three?"),
              (Parts{"One.", " Two 3.5 e.g.this!", " Three?"}));
    EXPECT_EQ(parts("He said \"no.\" Then\n\nmore"),
              (Parts{"He said \"no.\"", " Then\n\n", "more"}));
    EXPECT_EQ(parts("A。B"), (Parts{"A。", "B"}));
    EXPECT_EQ(parts("").size(), 0U);
    const auto tokens = tokenizer.encode(std::string(4000, 'x'), false, false);
    const auto starts = sentence_starts(tokenizer, tokens);
    ASSERT_EQ(std::ssize(starts), (std::ssize(tokens) + kLongestSentence - 1) / kLongestSentence);
    for (std::size_t i = 0; i < starts.size(); ++i) {
        EXPECT_EQ(starts[i], static_cast<std::int64_t>(i) * kLongestSentence);
    }
}

TEST_F(SessionTest, AFurtherTurnContinuesTheRenderedConversation) {
    const auto& tokenizer = tiny.model->tokenizer();
    for (const auto chat : {ChatTemplate::chatml, ChatTemplate::llama3, ChatTemplate::zephyr,
                            ChatTemplate::phi3, ChatTemplate::gemma}) {
        const Message first[] = {{"user", "one"}};
        const Message all[] = {{"user", "one"}, {"assistant", "two"}, {"user", "three"}};
        const auto render = [&](std::span<const Message> messages) {
            return tokenizer.decode(tokenizer.encode(chat_render(chat, messages, true), false),
                                    true);
        };
        const std::string turn =
            tokenizer.decode(next_turn_prompt(*tiny.model, "three", chat), true);
        EXPECT_EQ(render(first) + "two" + turn, render(all)) << chat_template_name(chat);
    }
}

TEST(TruncateMiddle, KeepsBothEnds) {
    const std::vector<Token> tokens = {0, 1, 2, 3, 4, 5, 6};
    EXPECT_EQ(truncate_middle(tokens, 7), tokens);
    EXPECT_EQ(truncate_middle(tokens, 99), tokens);
    EXPECT_EQ(truncate_middle(tokens, 4), (std::vector<Token>{0, 1, 5, 6}));
    EXPECT_EQ(truncate_middle(tokens, 5), (std::vector<Token>{0, 1, 4, 5, 6}));
    EXPECT_EQ(truncate_middle(tokens, 1), (std::vector<Token>{6}));
    EXPECT_TRUE(truncate_middle(tokens, 0).empty());
}

// --- parts of a prompt to keep

struct MarkedPrompts : testing::Test {
    MarkedPrompt marked(std::string_view document, std::string_view question,
                        std::optional<ChatTemplate> chat, const KeepParts& parts,
                        std::string_view system = {}) const {
        auto made = marked_prompt(*tiny.model, document, question, chat, system, parts);
        EXPECT_TRUE(made) << (made ? "" : made.error().message);
        return made ? std::move(*made) : MarkedPrompt();
    }
    std::string text(const MarkedPrompt& prompt, const PositionSpan& span) const {
        const auto tokens = std::span(prompt.tokens)
                                .subspan(static_cast<std::size_t>(span.begin),
                                         static_cast<std::size_t>(span.end - span.begin));
        std::string joined;
        for (const Token token : tokens) joined += tiny.model->tokenizer().piece(token, true);
        return joined;
    }

    TinyPair tiny{TinyModel{}};
};

TEST_F(MarkedPrompts, HaveTheTokensOfThePromptWithoutMarks) {
    const std::string plain = "The fox hid the key under the old stone.", asked = "Where is it?";
    const std::string with = "The fox <keep>hid the key</keep> under the o<keep>ld s</keep>tone.";
    for (const auto chat : {std::optional<ChatTemplate>(), std::optional(ChatTemplate::chatml),
                            std::optional(ChatTemplate::llama2_sys_strip)}) {
        const auto prompt = marked(with, "<keep>Where</keep> is it?", chat, {.marks = true});
        EXPECT_EQ(prompt.tokens, question_prompt(*tiny.model, plain, asked, chat).value());
        ASSERT_EQ(prompt.keep.size(), 3U);
        const std::string parts[] = {"hid the key", "ld s", "Where"};
        for (std::size_t i = 0; i < 3; ++i) {
            const auto kept = text(prompt, prompt.keep[i]);
            EXPECT_NE(kept.find(parts[i]), std::string::npos) << kept;
            EXPECT_LE(kept.size(), parts[i].size() + 12) << kept;  // the tokens at the borders
        }
    }
    const auto unmarked = marked(with, asked, std::nullopt, {});
    EXPECT_TRUE(unmarked.keep.empty());
    EXPECT_EQ(unmarked.tokens, question_prompt(*tiny.model, with, asked, std::nullopt).value());
}

TEST_F(MarkedPrompts, TheSystemPartIsAllThatStandsBeforeTheUsersText) {
    const auto prompt =
        marked(" Tell me.", "", ChatTemplate::chatml, {.system = true}, "You are terse.");
    ASSERT_EQ(prompt.keep.size(), 1U);
    EXPECT_EQ(prompt.keep[0].begin, 0);
    const auto kept = text(prompt, prompt.keep[0]);
    EXPECT_NE(kept.find("You are terse."), std::string::npos) << kept;
    EXPECT_NE(kept.find("user"), std::string::npos) << kept;
    EXPECT_EQ(kept.find("Tell"), std::string::npos) << kept;
    EXPECT_FALSE(marked_prompt(*tiny.model, "a", "", std::nullopt, "", {.system = true}));
    EXPECT_FALSE(marked_prompt(*tiny.model, "a", "b", std::nullopt, "", {.marks = true}));
    EXPECT_FALSE(marked_prompt(*tiny.model, "<keep>a", "b", std::nullopt, "", {.marks = true}));
}

TEST_F(MarkedPrompts, TruncationMovesWhatStaysAndLosesTheRest) {
    MarkedPrompt prompt{std::vector<Token>(20), {{1, 3}, {4, 16}, {17, 20}}};
    const auto cut = truncate_middle(prompt, 10);  // tokens 0..4 and 15..19
    EXPECT_EQ(cut.tokens.size(), 10U);
    EXPECT_EQ(cut.keep, (std::vector<PositionSpan>{{1, 3}, {4, 5}, {5, 6}, {7, 10}}));
    EXPECT_EQ(truncate_middle(prompt, 20).keep, prompt.keep);
}

}  // namespace
}  // namespace headkv::test
