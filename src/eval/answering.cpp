#include "eval/answering.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "calibrate/probe.h"
#include "engine/sequences.h"
#include "headkv/sampler.h"

namespace headkv {
namespace {

// Tokens of one decode call: enough that matrices are multiplied at the speed of a prompt, few
// enough that their logits find room (150 MB with a vocabulary of 150,000).
constexpr std::size_t kTokensAtOnce = 256;

// Log-probabilities of the reference behind every sequence, [sequences], read from copies. Several
// sequences share a call; calls are of about equal length, so that all sequences are computed
// alike.
Result<std::vector<std::vector<double>>> score_reference(
    Engine& engine, std::span<const SequenceId> sequences, std::span<const Token> reference,
    std::span<const std::vector<float>> first_logits) {
    std::vector<std::vector<double>> scores;
    for (const auto& logits : first_logits) {
        scores.push_back({log_probability(logits, reference[0])});
    }
    const std::size_t each = reference.size() - 1;
    if (each == 0) return scores;
    const std::size_t fit = std::max<std::size_t>(1, kTokensAtOnce / each);
    const std::size_t calls = (sequences.size() + fit - 1) / fit;
    for (std::size_t call = 0; call < calls; ++call) {
        const auto first = sequences.size() * call / calls;
        const auto end = sequences.size() * (call + 1) / calls;
        std::vector<SequenceId> ids;
        for (auto i = first; i < end; ++i) {
            const auto copy = engine.copy(sequences[i]);
            if (!copy) {
                const Sequences guard(engine, std::move(ids));
                return tl::unexpected(copy.error());
            }
            ids.push_back(*copy);
        }
        const Sequences copies(engine, std::move(ids));
        std::vector<DecodeInput> inputs;
        inputs.reserve(copies.ids().size() * each);
        for (const SequenceId copy : copies.ids()) {
            for (std::size_t i = 0; i < each; ++i) inputs.push_back({copy, reference[i], true});
        }
        if (auto done = engine.decode(inputs); !done) return tl::unexpected(done.error());
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            scores[first + i / each].push_back(
                log_probability(engine.logits(i), reference[i % each + 1]));
        }
    }
    return scores;
}

struct Greedy {
    std::vector<Token> tokens;
    bool last_unread = false;  // the sequence does not hold the last token: nothing followed it
};

// Greedy answers of all sequences, one batch a step; a sequence drops out at its end.
Result<std::vector<Greedy>> greedy_answers(Engine& engine, const Asked& asked,
                                           std::span<const SequenceId> sequences,
                                           std::span<const std::vector<float>> first_logits) {
    const Tokenizer& tokenizer = engine.model().tokenizer();
    std::vector<Greedy> answers(sequences.size());
    std::vector<std::size_t> active;
    // Appends a sequence's next token; false once it has ended.
    const auto take = [&](std::size_t which, Token token) {
        Greedy& answer = answers[which];
        answer.last_unread = false;
        if (tokenizer.is_end(token)) return false;
        answer.tokens.push_back(token);
        answer.last_unread = (asked.first_line && line_complete(tokenizer, answer.tokens)) ||
                             static_cast<std::int64_t>(answer.tokens.size()) >= asked.max_tokens;
        return !answer.last_unread;
    };
    for (std::size_t i = 0; i < sequences.size(); ++i) {
        if (take(i, best_token(first_logits[i]))) active.push_back(i);
    }
    while (!active.empty()) {
        std::vector<DecodeInput> inputs;
        inputs.reserve(active.size());
        for (const std::size_t which : active) {
            inputs.push_back({sequences[which], answers[which].tokens.back(), true});
        }
        if (auto done = engine.decode(inputs); !done) return tl::unexpected(done.error());
        std::vector<std::size_t> going;
        for (std::size_t i = 0; i < active.size(); ++i) {
            if (take(active[i], best_token(engine.logits(i)))) going.push_back(active[i]);
        }
        active = std::move(going);
    }
    return answers;
}

// What a sequence has to read before a further question: the end of its own answer, but for the
// newline that ended it (the question begins with its own).
std::vector<Token> unread_of(const Tokenizer& tokenizer, const Greedy& answer) {
    if (!answer.last_unread) return {};
    const std::string piece = tokenizer.piece(answer.tokens.back());
    if (piece.find('\n') != std::string::npos &&
        piece.find_first_not_of(" \t\r\n") == std::string::npos) {
        return {};
    }
    return {answer.tokens.back()};
}

// What the answer is scored by.
std::string text_of(const Tokenizer& tokenizer, const Asked& asked, const Greedy& answer) {
    std::string text = tokenizer.decode(answer.tokens);
    if (asked.first_line) text.resize(first_line(text).size());
    return text;
}

// One question to all configurations: [configurations].
struct Exchange {
    std::vector<Greedy> answers;
    std::vector<std::vector<double>> log_probability;
};

// The sequences read `before[i]`, then the question; an empty question was read by the prefill.
Result<Exchange> exchange(Engine& engine, const Asked& asked, std::span<const SequenceId> sequences,
                          std::span<const std::vector<Token>> before,
                          std::span<const Token> question, std::span<const Token> reference,
                          const PrefillResult& prefilled) {
    Exchange result;
    std::vector<std::vector<float>> first_logits;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
        if (question.empty()) {
            first_logits.push_back(prefilled.logits_of(i));
        } else {
            std::vector<Token> tokens = before.empty() ? std::vector<Token>() : before[i];
            tokens.insert(tokens.end(), question.begin(), question.end());
            auto read = engine.extend(sequences[i], tokens);
            if (!read) return tl::unexpected(read.error());
            first_logits.push_back(std::move(*read));
        }
    }
    auto scores = score_reference(engine, sequences, reference, first_logits);
    if (!scores) return tl::unexpected(scores.error());
    result.log_probability = std::move(*scores);
    auto answers = greedy_answers(engine, asked, sequences, first_logits);
    if (!answers) return tl::unexpected(answers.error());
    result.answers = std::move(*answers);
    return result;
}

// The same on copies, which are gone afterwards.
Result<Exchange> exchange_on_copies(Engine& engine, const Asked& asked,
                                    std::span<const SequenceId> sequences,
                                    std::span<const Token> question,
                                    std::span<const Token> reference) {
    std::vector<SequenceId> ids;
    for (const SequenceId sequence : sequences) {
        auto copy = engine.copy(sequence);
        if (!copy) {
            const Sequences guard(engine, std::move(ids));
            return tl::unexpected(copy.error());
        }
        ids.push_back(*copy);
    }
    const Sequences copies(engine, std::move(ids));
    return exchange(engine, asked, copies.ids(), {}, question, reference, {});
}

}  // namespace

std::int64_t answer_room(const Asked& asked, std::span<const Token> reference) {
    return std::max(asked.max_tokens, static_cast<std::int64_t>(reference.size()));
}

std::string_view first_line(std::string_view text) {
    const std::size_t first = text.find_first_not_of(" \t\r\n");
    return first == std::string_view::npos ? text : text.substr(0, text.find('\n', first));
}

std::vector<MethodConfig> asked_methods(const Asked& asked,
                                        std::span<const ConfigUnderTest> configs) {
    auto methods = methods_of(configs);
    for (MethodConfig& method : methods) {
        method.question = asked.question;
        method.keep = asked.keep;
    }
    return methods;
}

Result<std::vector<Answered>> answer_with_all(Engine& engine, const Asked& asked,
                                              std::span<const ConfigUnderTest> configs,
                                              const Progress& progress) {
    assert(asked.compressed >= 1 && asked.compressed <= asked.prompt.size());
    assert(!asked.reference.empty());
    assert(asked.turns.empty() || !asked.shared_context || asked.compressed < asked.prompt.size());
    const auto all = with_full(configs);
    const auto question = std::span(asked.prompt).subspan(asked.compressed);
    PrefillOptions options;
    options.progress = progress;
    // Copies reserve for themselves; one after the other, all turns lie in one sequence.
    options.expected_new_tokens =
        static_cast<std::int64_t>(question.size()) + answer_room(asked, asked.reference);
    for (const AskedTurn& turn : asked.turns) {
        if (asked.shared_context) break;
        options.expected_new_tokens +=
            static_cast<std::int64_t>(turn.prompt.size()) + answer_room(asked, turn.reference);
    }
    const auto methods = asked_methods(asked, all);
    auto filled = engine.prefill(std::span(asked.prompt).first(asked.compressed), methods, options);
    if (!filled) return tl::unexpected(filled.error());
    const Sequences sequences(engine, filled->sequences);

    std::vector<Answered> answers;
    for (std::size_t i = 0; i < all.size(); ++i) {
        const SequenceInfo info = engine.info(sequences.ids()[i]);
        answers.push_back({all[i].name,
                           all[i].rows,
                           "",
                           {},
                           info.plan_bytes,
                           info.full_bytes,
                           info.rows_kept_mean,
                           {},
                           info.archive_bytes});
    }
    const Tokenizer& tokenizer = engine.model().tokenizer();
    const bool copies = asked.shared_context && !asked.turns.empty();
    auto first =
        copies ? exchange_on_copies(engine, asked, sequences.ids(), question, asked.reference)
               : exchange(engine, asked, sequences.ids(), {}, question, asked.reference, *filled);
    if (!first) return tl::unexpected(first.error());
    for (std::size_t i = 0; i < all.size(); ++i) {
        answers[i].text = text_of(tokenizer, asked, first->answers[i]);
        answers[i].log_probability = std::move(first->log_probability[i]);
    }
    Exchange last = std::move(*first);
    for (const AskedTurn& turn : asked.turns) {
        assert(!turn.prompt.empty() && !turn.reference.empty());
        std::vector<std::vector<Token>> before;
        before.reserve(last.answers.size());
        for (const Greedy& answer : last.answers) before.push_back(unread_of(tokenizer, answer));
        auto next =
            copies
                ? exchange_on_copies(engine, asked, sequences.ids(), turn.prompt, turn.reference)
                : exchange(engine, asked, sequences.ids(), before, turn.prompt, turn.reference, {});
        if (!next) return tl::unexpected(next.error());
        for (std::size_t i = 0; i < all.size(); ++i) {
            answers[i].turns.push_back(
                {text_of(tokenizer, asked, next->answers[i]), std::move(next->log_probability[i])});
        }
        last = std::move(*next);
    }
    return answers;
}

}  // namespace headkv
