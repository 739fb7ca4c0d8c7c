// One probe of the needle test on the real engine.
#include <algorithm>
#include <chrono>
#include <utility>

#include "eval/niah.h"
#include "headkv/sampler.h"

namespace headkv {
namespace {

// Sequences of one probe; freed whatever happens.
class Sequences {
public:
    Sequences(Engine& engine, std::vector<SequenceId> ids)
        : engine_(engine), ids_(std::move(ids)) {}
    ~Sequences() {
        for (const SequenceId id : ids_) engine_.release(id);
    }
    Sequences(const Sequences&) = delete;
    Sequences& operator=(const Sequences&) = delete;
    const std::vector<SequenceId>& ids() const { return ids_; }

private:
    Engine& engine_;
    std::vector<SequenceId> ids_;
};

// The reference answer as the model would write it after the prompt.
struct Reference {
    std::vector<Token> tokens;
    TokenSpan key;  // where the key stands in it; everything if it has none
};

Reference make_reference(const Tokenizer& tokenizer, const Needle& needle, bool chat) {
    Reference reference;
    // A raw prompt ends with "Answer:", so the answer begins with a blank, unless the vocabulary
    // puts one there by itself.
    const auto plain = tokenizer.encode("a", false, false);
    const bool own_blank = !plain.empty() && tokenizer.piece(plain[0]).starts_with(" ");
    const std::string text = (chat || own_blank ? "" : " ") + needle.answer;
    reference.tokens = tokenizer.encode(text, false, false);
    const auto key = find_span(tokenizer, reference.tokens, needle.answer, needle.key);
    reference.key = key ? *key : TokenSpan{0, static_cast<std::int64_t>(reference.tokens.size())};
    return reference;
}

struct ReferenceScore {
    double all = 0, key = 0;  // log-probability per token
};

ReferenceScore average(const Reference& reference, std::span<const double> each) {
    ReferenceScore score;
    for (std::size_t i = 0; i < each.size(); ++i) {
        score.all += each[i] / static_cast<double>(each.size());
        if (reference.key.contains(static_cast<std::int64_t>(i))) {
            score.key += each[i] / static_cast<double>(reference.key.size());
        }
    }
    return score;
}

// Log-probabilities of the reference after the prompt, read from a copy of the sequence in one
// call. The first token's comes from the prefill: no compressed row has been read for it.
Result<ReferenceScore> score_reference(Engine& engine, SequenceId sequence,
                                       const Reference& reference,
                                       std::span<const float> prefill_logits) {
    auto copy = engine.copy(sequence);
    if (!copy) return tl::unexpected(copy.error());
    const Sequences guard(engine, {*copy});
    std::vector<double> each = {log_probability(prefill_logits, reference.tokens[0])};
    std::vector<DecodeInput> inputs;
    for (std::size_t i = 0; i + 1 < reference.tokens.size(); ++i) {
        inputs.push_back({*copy, reference.tokens[i], true});
    }
    if (!inputs.empty()) {
        if (auto done = engine.decode(inputs); !done) return tl::unexpected(done.error());
    }
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        each.push_back(log_probability(engine.logits(i), reference.tokens[i + 1]));
    }
    return average(reference, each);
}

// Greedy answers of all sequences, one batch a step; a sequence drops out at its end token or at
// a line's end.
Result<std::vector<std::string>> greedy_answers(Engine& engine,
                                                const std::vector<SequenceId>& sequences,
                                                std::span<const float> prefill_logits,
                                                std::int64_t max_tokens) {
    const Tokenizer& tokenizer = engine.model().tokenizer();
    std::vector<std::vector<Token>> answers(sequences.size());
    std::vector<std::size_t> active;
    // Appends a sequence's next token; false once it has ended.
    const auto take = [&](std::size_t which, Token token) {
        if (tokenizer.is_end(token)) return false;
        answers[which].push_back(token);
        return !line_complete(tokenizer, answers[which]) &&
               static_cast<std::int64_t>(answers[which].size()) < max_tokens;
    };
    const Token first = best_token(prefill_logits);
    for (std::size_t i = 0; i < sequences.size(); ++i) {
        if (take(i, first)) active.push_back(i);
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

std::vector<MethodConfig> with_full(std::span<const NiahConfig> configs) {
    MethodConfig full;
    full.method = "full";
    full.budget = {Budget::Unit::share, 1.0};
    std::vector<MethodConfig> all = {full};
    for (const NiahConfig& config : configs) all.push_back(config.method);
    return all;
}

}  // namespace

Result<NiahProbe> run_niah_probe(Engine& engine, const Haystack& haystack, const Needle& needle,
                                 const ProbeSpec& spec, std::span<const NiahConfig> configs,
                                 const NiahSettings& settings, const Progress& progress) {
    const auto start = std::chrono::steady_clock::now();
    auto prepared = prepare_probe(engine.model(), haystack, needle, spec, settings.chat);
    if (!prepared) return tl::unexpected(prepared.error());
    const Reference reference =
        make_reference(engine.model().tokenizer(), needle, settings.chat.has_value());
    PrefillOptions options;
    options.progress = progress;
    options.expected_new_tokens =
        std::max(settings.max_tokens, static_cast<std::int64_t>(reference.tokens.size()));
    auto filled = engine.prefill(prepared->prompt, with_full(configs), options);
    if (!filled) return tl::unexpected(filled.error());
    const Sequences sequences(engine, filled->sequences);

    NiahProbe probe;
    probe.spec = spec;
    probe.prompt_tokens = static_cast<std::int64_t>(prepared->prompt.size());
    for (std::size_t i = 0; i < sequences.ids().size(); ++i) {
        const SequenceId id = sequences.ids()[i];
        auto score = score_reference(engine, id, reference, filled->logits);
        if (!score) return tl::unexpected(score.error());
        const SequenceInfo info = engine.info(id);
        NiahAnswer answer;
        answer.method = i == 0 ? "full" : configs[i - 1].name;
        answer.rows = i == 0 ? 0 : configs[i - 1].rows;
        answer.log_probability = score->all;
        answer.log_probability_key = score->key;
        answer.kv_bytes = info.plan_bytes;
        answer.kv_bytes_full = info.full_bytes;
        answer.rows_kept = info.rows_kept_mean;
        probe.answers.push_back(std::move(answer));
    }
    auto texts = greedy_answers(engine, sequences.ids(), filled->logits, settings.max_tokens);
    if (!texts) return tl::unexpected(texts.error());
    for (std::size_t i = 0; i < texts->size(); ++i) {
        probe.answers[i].text = std::move((*texts)[i]);
        probe.answers[i].hit = is_hit(probe.answers[i].text, needle);
    }
    probe.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return probe;
}

}  // namespace headkv
