// Right answers read to the real engine: evidence (task, icl) and interventions (causal).
#include <algorithm>
#include <cassert>
#include <cmath>
#include <memory>
#include <numeric>

#include "calibrate/forced_probes.h"
#include "engine/sequences.h"
#include "headkv/sampler.h"

namespace headkv {
namespace {

// Tokens of one decode call, so that their logits find room (150 MB with a vocabulary of 150,000).
constexpr std::size_t kTokensAtOnce = 256;
constexpr double kLeastLoss = 0.05;  // a small cache that loses less has nothing to win back

double mean(std::span<const double> values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Mean log-probability a token of `answer` behind `prompt`.
Result<double> likelihood(Engine& engine, std::span<const Token> prompt,
                          std::span<const Token> answer) {
    std::vector<Token> text(prompt.begin(), prompt.end());
    text.insert(text.end(), answer.begin(), answer.end());
    const auto all = engine.log_probabilities(text);
    if (!all) return tl::unexpected(all.error());
    const auto last = std::span(*all).last(answer.size());
    return std::accumulate(last.begin(), last.end(), 0.0) / static_cast<double>(answer.size());
}

Result<ProbeOutcome> run_forced(Engine& engine, const ForcedProbe& probe,
                                const Progress& progress) {
    const HeadShape& shape = engine.model().info().shape;
    const auto body = std::span(probe.prompt).first(probe.prompt.size() - 1);
    const std::vector<MethodConfig> configs = {full_cache()};
    PrefillOptions options;
    options.progress = progress;
    options.expected_new_tokens = static_cast<std::int64_t>(probe.answer.size()) + 1;
    auto filled = engine.prefill(body, configs, options);
    if (!filled) return tl::unexpected(filled.error());
    const Sequences held(engine, std::move(filled->sequences));
    const SequenceId sequence = held.ids()[0];

    std::vector<double> scores(static_cast<std::size_t>(shape.layers * shape.query_heads));
    std::vector<double> log_probability;
    std::size_t own = 0;  // tokens that the model would have chosen itself
    Token input = probe.prompt.back();
    for (const Token token : probe.answer) {
        if (progress && !progress(0, 1)) {
            return tl::unexpected(Error{ErrorKind::interrupted, "interrupted"});
        }
        const DecodeInput step{sequence, input, true};
        if (auto done = engine.decode({&step, 1}); !done) return tl::unexpected(done.error());
        log_probability.push_back(headkv::log_probability(engine.logits(0), token));
        own += best_token(engine.logits(0)) == token ? 1 : 0;
        std::size_t which = 0;
        for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
            for (const auto& weights : engine.attention(sequence, layer)) {
                scores[which++] += evidence_score(weights, probe.evidence);
            }
        }
        assert(which == scores.size());
        input = token;
    }
    const auto steps = static_cast<double>(probe.answer.size());
    for (double& score : scores) score /= steps;

    ProbeOutcome outcome;
    const double with = mean(log_probability);
    bool counts = own == probe.answer.size();
    outcome.quality = static_cast<double>(own) / steps;
    outcome.answer = fmt::format("{:.0f} % of the answer's tokens", 100 * outcome.quality);
    if (!probe.without.empty()) {
        const auto without = likelihood(engine, probe.without, probe.answer);
        if (!without) return tl::unexpected(without.error());
        outcome.quality = with - *without;
        outcome.answer =
            fmt::format("log-probability a token of the answer {:.2f}, without the document {:.2f}",
                        with, *without);
        counts = with > *without;
    }
    if (counts) outcome.scores = std::move(scores);
    return outcome;
}

// One head at `raised` rows, all others at `small`: importance that lies on that head alone. With
// b = small + extra / heads the floor is b - extra / heads and the pool is `extra`.
MethodConfig raised(const CalibrationSettings& settings, const HeadShape& shape,
                    std::int64_t kv_head) {
    auto scores = std::make_shared<HeadScores>();
    scores->kind = "raised";
    scores->shape = shape;
    scores->mean.assign(static_cast<std::size_t>(shape.layers * shape.query_heads), 0.0);
    scores->mean[static_cast<std::size_t>(kv_head * shape.group())] = 1;
    const auto heads = static_cast<double>(shape.layers * shape.kv_heads);
    const double extra = settings.raised_rows - settings.small_rows;
    MethodConfig config;
    config.method = "headkv-r2";
    config.budget.value = settings.small_rows + extra / heads;
    config.options.beta =
        (config.budget.value - static_cast<double>(config.options.window)) * heads / extra;
    config.scores = std::move(scores);
    return config;
}

// Log-probabilities a token of the answer, mean [sequences]; `first` is the prompt's last token.
// `own`: the share of tokens that sequence 0 would have chosen.
Result<std::vector<double>> read_answer(Engine& engine, std::span<const SequenceId> sequences,
                                        Token first, std::span<const Token> answer, double& own,
                                        const Progress& progress) {
    std::vector<double> means;
    const std::size_t each = answer.size();
    const std::size_t fit = std::max<std::size_t>(1, kTokensAtOnce / each);
    const std::size_t calls = (sequences.size() + fit - 1) / fit;
    for (std::size_t call = 0; call < calls; ++call) {
        if (progress && !progress(0, 1)) {
            return tl::unexpected(Error{ErrorKind::interrupted, "interrupted"});
        }
        const auto begin = sequences.size() * call / calls;
        const auto end = sequences.size() * (call + 1) / calls;
        std::vector<DecodeInput> inputs;
        for (auto i = begin; i < end; ++i) {
            for (std::size_t t = 0; t < each; ++t) {
                inputs.push_back({sequences[i], t == 0 ? first : answer[t - 1], true});
            }
        }
        if (auto done = engine.decode(inputs); !done) return tl::unexpected(done.error());
        for (auto i = begin; i < end; ++i) {
            double sum = 0;
            for (std::size_t t = 0; t < each; ++t) {
                const auto logits = engine.logits((i - begin) * each + t);
                sum += log_probability(logits, answer[t]);
                if (i == 0) own += best_token(logits) == answer[t] ? 1 : 0;
            }
            means.push_back(sum / static_cast<double>(each));
        }
    }
    own /= static_cast<double>(each);
    return means;
}

Result<ProbeOutcome> run_causal(Engine& engine, const PreparedProbe& probe,
                                std::span<const Token> answer, const CalibrationSettings& settings,
                                const Progress& progress) {
    const HeadShape& shape = engine.model().info().shape;
    MethodConfig small;
    small.method = "snapkv";
    small.budget.value = settings.small_rows;
    std::vector<MethodConfig> configs = {full_cache(), small};
    const std::int64_t heads = shape.layers * shape.kv_heads;
    for (std::int64_t head = 0; head < heads; ++head) {
        configs.push_back(raised(settings, shape, head));
    }
    // As many rows above the plan as the answer has, so that nothing is selected again: hundreds of
    // caches with the usual room would take most of a gigabyte.
    for (MethodConfig& config : configs) {
        config.options.reserve = static_cast<std::int64_t>(answer.size()) + 1;
    }
    PrefillOptions options;
    options.progress = progress;
    options.expected_new_tokens = static_cast<std::int64_t>(answer.size()) + 1;
    const auto body = std::span(probe.prompt).first(probe.prompt.size() - 1);
    auto filled = engine.prefill(body, configs, options);
    if (!filled) return tl::unexpected(filled.error());
    const Sequences held(engine, std::move(filled->sequences));
    double own = 0;
    const auto means = read_answer(engine, held.ids(), probe.prompt.back(), answer, own, progress);
    if (!means) return tl::unexpected(means.error());

    ProbeOutcome outcome;
    const double full = (*means)[0], base = (*means)[1];
    outcome.quality = full - base;
    outcome.answer = fmt::format(
        "the full cache prefers {:.0f} % of the answer's tokens, the small one loses {:.2f} a "
        "token",
        100 * own, full - base);
    if (own > settings.pass && outcome.quality >= kLeastLoss) {
        outcome.scores.resize(static_cast<std::size_t>(shape.layers * shape.query_heads));
        for (std::size_t i = 0; i < outcome.scores.size(); ++i) {
            outcome.scores[i] = (*means)[2 + i / static_cast<std::size_t>(shape.group())] - base;
        }
    }
    return outcome;
}

}  // namespace

ProbeRunner engine_forced_runner(Engine& engine, std::span<const ForcedProbe> probes,
                                 const Progress& progress) {
    return [&engine, probes, progress](std::size_t which) {
        return run_forced(engine, probes[which], progress);
    };
}

ProbeRunner engine_causal_runner(Engine& engine, const Haystack& haystack,
                                 std::span<const Needle> needles, std::span<const ProbeSpec> specs,
                                 const CalibrationSettings& settings, const Progress& progress) {
    return needle_runner(
        engine, haystack, needles, specs, settings,
        [&engine, &settings, progress](const Needle& needle, const PreparedProbe& probe) {
            const auto answer =
                answer_tokens(engine.model().tokenizer(), needle.answer, settings.chat.has_value());
            return run_causal(engine, probe, answer, settings, progress);
        });
}

Result<void> check_causal(const CalibrationSettings& settings) {
    const auto window = static_cast<double>(MethodOptions{}.window);
    if (!(settings.small_rows >= window)) {
        return bad_input("--small-rows {:g}: must be at least the window of {:g}",
                         settings.small_rows, window);
    }
    if (!(settings.raised_rows > settings.small_rows) || !std::isfinite(settings.raised_rows)) {
        return bad_input("--raised-rows {:g}: must be more than --small-rows {:g}",
                         settings.raised_rows, settings.small_rows);
    }
    return {};
}

}  // namespace headkv
