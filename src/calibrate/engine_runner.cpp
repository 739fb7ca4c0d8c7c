// One probe on the real engine.
#include <algorithm>
#include <cassert>

#include "calibrate/calibration.h"
#include "calibrate/head_scoring.h"
#include "calibrate/metrics.h"
#include "engine/sequences.h"
#include "headkv/sampler.h"

namespace headkv {
namespace {

class Prober {
public:
    Prober(Engine& engine, const CalibrationSettings& settings, const Needle& needle,
           PreparedProbe probe)
        : engine_(engine),
          settings_(settings),
          needle_(needle),
          tokens_(std::move(probe.prompt)),
          span_(probe.span),
          scores_(static_cast<std::size_t>(shape().layers * shape().query_heads)) {}

    Result<ProbeOutcome> run(const Progress& progress) {
        // The last prompt token is decoded, not prefilled: its query makes the first answer token,
        // and the attention of every such query is to be seen.
        const auto body = std::span(tokens_).first(tokens_.size() - 1);
        const std::vector<MethodConfig> configs = {full_cache()};
        PrefillOptions options;
        options.progress = progress;
        options.expected_new_tokens = most_tokens() + 1;
        auto filled = engine_.prefill(body, configs, options);
        if (!filled) return tl::unexpected(filled.error());
        sequence_ = filled->sequences[0];
        auto answered = answer();
        engine_.release(sequence_);
        if (!answered) return tl::unexpected(answered.error());
        return outcome();
    }

private:
    const HeadShape& shape() const { return engine_.model().info().shape; }

    // Small models say the question again before they answer it.
    std::int64_t most_tokens() const {
        constexpr std::int64_t room = 12;
        if (settings_.kind == ScoreKind::r) return settings_.max_tokens;
        const auto reference =
            engine_.model().tokenizer().encode(needle_.answer, false, false).size();
        return static_cast<std::int64_t>(reference) + (needle_.key.empty() ? 0 : room);
    }

    // Whether the answer holds the key: nothing after it is of interest.
    bool key_told() const {
        return settings_.kind == ScoreKind::r2 && !needle_.key.empty() &&
               find_ignoring_case(engine_.model().tokenizer().decode(answer_), needle_.key) !=
                   std::string::npos;
    }

    Result<void> answer() {
        const Tokenizer& tokenizer = engine_.model().tokenizer();
        const std::int64_t most = most_tokens();
        while (static_cast<std::int64_t>(answer_.size()) < most) {
            const DecodeInput input{sequence_, tokens_.back(), true};
            auto decoded = engine_.decode(std::span(&input, 1));
            if (!decoded) return decoded;
            const Token next = best_token(engine_.logits(0));
            if (tokenizer.is_end(next)) break;
            score_step(next);
            answer_.push_back(next);
            tokens_.push_back(next);
            if (settings_.kind == ScoreKind::r && line_complete(tokenizer, answer_)) break;
            if (key_told()) break;
        }
        return {};
    }

    void score_step(Token emitted) {
        for (std::int64_t layer = 0; layer < shape().layers; ++layer) {
            const auto attention = engine_.attention(sequence_, layer);  // [query_heads][rows]
            assert(static_cast<std::int64_t>(attention.size()) == shape().query_heads);
            for (std::size_t head = 0; head < attention.size(); ++head) {
                const std::vector<float>& weights = attention[head];
                assert(weights.size() == tokens_.size());  // full cache: row = position
                double& score = scores_[static_cast<std::size_t>(layer) * attention.size() + head];
                score += settings_.kind == ScoreKind::r
                             ? retrieval_score(weights, tokens_, span_, emitted)
                             : reasoning_score(weights, span_);
            }
        }
    }

    ProbeOutcome outcome() {
        ProbeOutcome outcome;
        outcome.answer = engine_.model().tokenizer().decode(answer_);
        outcome.quality = settings_.kind == ScoreKind::r
                              ? rouge1_recall(outcome.answer, needle_.real_needle)
                              : answer_f1(outcome.answer, needle_.answer);
        // Words of the question make up most of a reference: the key alone tells a right answer
        // from one that says the question again.
        const bool by_key = settings_.kind == ScoreKind::r2 && !needle_.key.empty();
        if (by_key ? key_told() : outcome.quality > settings_.pass) {
            outcome.scores = std::move(scores_);
        }
        return outcome;
    }

    Engine& engine_;
    const CalibrationSettings& settings_;
    const Needle& needle_;
    std::vector<Token> tokens_;  // prompt and what was generated
    TokenSpan span_;
    std::vector<double> scores_;  // [layers][query_heads] sums over the steps
    SequenceId sequence_ = 0;
    std::vector<Token> answer_;
};

}  // namespace

ProbeRunner needle_runner(Engine& engine, const Haystack& haystack, std::span<const Needle> needles,
                          std::span<const ProbeSpec> specs, const CalibrationSettings& settings,
                          NeedleProbe run) {
    return [&engine, &haystack, needles, specs, &settings,
            run = std::move(run)](std::size_t which) -> Result<ProbeOutcome> {
        const ProbeSpec& spec = specs[which];
        const Needle& needle = needles[static_cast<std::size_t>(spec.needle)];
        auto probe = prepare_probe(engine.model(), haystack, needle, spec, settings.chat);
        if (!probe) return tl::unexpected(probe.error());
        return run(needle, std::move(*probe));
    };
}

ProbeRunner engine_probe_runner(Engine& engine, const Haystack& haystack,
                                std::span<const Needle> needles, std::span<const ProbeSpec> specs,
                                const CalibrationSettings& settings, const Progress& progress) {
    return needle_runner(
        engine, haystack, needles, specs, settings,
        [&engine, &settings, progress](const Needle& needle, PreparedProbe probe) {
            return Prober(engine, settings, needle, std::move(probe)).run(progress);
        });
}

}  // namespace headkv
