#include "eval/answering.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "calibrate/probe.h"
#include "eval/sequences.h"
#include "headkv/sampler.h"

namespace headkv {
namespace {

// Log-probabilities of the reference, read from a copy of the sequence in one call.
Result<std::vector<double>> score_reference(Engine& engine, SequenceId sequence,
                                            std::span<const Token> reference,
                                            std::span<const float> first_logits) {
    auto copy = engine.copy(sequence);
    if (!copy) return tl::unexpected(copy.error());
    const Sequences guard(engine, {*copy});
    std::vector<double> each = {log_probability(first_logits, reference[0])};
    std::vector<DecodeInput> inputs;
    for (std::size_t i = 0; i + 1 < reference.size(); ++i) {
        inputs.push_back({*copy, reference[i], true});
    }
    if (!inputs.empty()) {
        if (auto done = engine.decode(inputs); !done) return tl::unexpected(done.error());
    }
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        each.push_back(log_probability(engine.logits(i), reference[i + 1]));
    }
    return each;
}

// Greedy answers of all sequences, one batch a step; a sequence drops out at its end.
Result<std::vector<std::string>> greedy_answers(Engine& engine, const Asked& asked,
                                                std::span<const SequenceId> sequences,
                                                std::span<const std::vector<float>> first_logits) {
    const Tokenizer& tokenizer = engine.model().tokenizer();
    std::vector<std::vector<Token>> answers(sequences.size());
    std::vector<std::size_t> active;
    // Appends a sequence's next token; false once it has ended.
    const auto take = [&](std::size_t which, Token token) {
        if (tokenizer.is_end(token)) return false;
        answers[which].push_back(token);
        return !(asked.first_line && line_complete(tokenizer, answers[which])) &&
               static_cast<std::int64_t>(answers[which].size()) < asked.max_tokens;
    };
    for (std::size_t i = 0; i < sequences.size(); ++i) {
        if (take(i, best_token(first_logits[i]))) active.push_back(i);
    }
    while (!active.empty()) {
        std::vector<DecodeInput> inputs;
        inputs.reserve(active.size());
        for (const std::size_t which : active) {
            inputs.push_back({sequences[which], answers[which].back(), true});
        }
        if (auto done = engine.decode(inputs); !done) return tl::unexpected(done.error());
        std::vector<std::size_t> going;
        for (std::size_t i = 0; i < active.size(); ++i) {
            if (take(active[i], best_token(engine.logits(i)))) going.push_back(active[i]);
        }
        active = std::move(going);
    }
    std::vector<std::string> texts;
    texts.reserve(answers.size());
    for (const auto& answer : answers) texts.push_back(tokenizer.decode(answer));
    return texts;
}

}  // namespace

std::vector<Token> answer_tokens(const Tokenizer& tokenizer, std::string_view answer, bool chat) {
    const auto plain = tokenizer.encode("a", false, false);
    const bool own_blank = !plain.empty() && tokenizer.piece(plain[0]).starts_with(" ");
    std::string text(chat || own_blank ? "" : " ");
    text += answer;
    return tokenizer.encode(text, false, false);
}

Result<std::vector<Answered>> answer_with_all(Engine& engine, const Asked& asked,
                                              std::span<const ConfigUnderTest> configs,
                                              const Progress& progress) {
    assert(asked.compressed >= 1 && asked.compressed <= asked.prompt.size());
    assert(!asked.reference.empty());
    const auto all = with_full(configs);
    const auto question = std::span(asked.prompt).subspan(asked.compressed);
    PrefillOptions options;
    options.progress = progress;
    options.expected_new_tokens =
        static_cast<std::int64_t>(question.size()) +
        std::max(asked.max_tokens, static_cast<std::int64_t>(asked.reference.size()));
    auto filled =
        engine.prefill(std::span(asked.prompt).first(asked.compressed), methods_of(all), options);
    if (!filled) return tl::unexpected(filled.error());
    const Sequences sequences(engine, filled->sequences);

    std::vector<Answered> answers;
    std::vector<std::vector<float>> first_logits;
    for (std::size_t i = 0; i < all.size(); ++i) {
        const SequenceId id = sequences.ids()[i];
        const SequenceInfo info = engine.info(id);
        answers.push_back({all[i].name,
                           all[i].rows,
                           "",
                           {},
                           info.plan_bytes,
                           info.full_bytes,
                           info.rows_kept_mean});
        if (question.empty()) {
            first_logits.push_back(filled->logits);
        } else {
            auto logits = engine.extend(id, question);
            if (!logits) return tl::unexpected(logits.error());
            first_logits.push_back(std::move(*logits));
        }
        auto score = score_reference(engine, id, asked.reference, first_logits.back());
        if (!score) return tl::unexpected(score.error());
        answers.back().log_probability = std::move(*score);
    }
    auto texts = greedy_answers(engine, asked, sequences.ids(), first_logits);
    if (!texts) return tl::unexpected(texts.error());
    for (std::size_t i = 0; i < texts->size(); ++i) answers[i].text = std::move((*texts)[i]);
    return answers;
}

}  // namespace headkv
