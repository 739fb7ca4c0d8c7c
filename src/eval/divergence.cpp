#include "eval/divergence.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "calibrate/probe.h"
#include "eval/perplexity.h"
#include "eval/sequences.h"
#include "headkv/sampler.h"

namespace headkv {
namespace {

// log of the sum of exp(logits), in f64.
double log_sum(std::span<const float> logits) {
    const auto top = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - top);
    return top + std::log(sum);
}

// What is collected of one configuration.
struct Collected {
    std::vector<Observation> divergence, same_best, dlog_probability;
    std::vector<double> each;
    double log_probability = 0;
    std::int64_t kv_bytes = 0, kv_bytes_full = 0;
};

constexpr std::size_t kPiece = 32;  // predictions at a time: their logits are held twice

// The predictions behind one prefix. `text` is prefix + tokens long.
Result<void> read_chunk(Engine& engine, std::span<const Token> text, std::size_t prefix,
                        std::int64_t chunk, std::span<const MethodConfig> configs,
                        std::span<Collected> collected, const Progress& progress) {
    PrefillOptions options;
    options.progress = progress;
    options.expected_new_tokens = static_cast<std::int64_t>(text.size() - prefix);
    auto filled = engine.prefill(text.first(prefix), configs, options);
    if (!filled) return tl::unexpected(filled.error());
    const Sequences sequences(engine, filled->sequences);
    for (std::size_t i = 0; i < collected.size(); ++i) {
        const SequenceInfo info = engine.info(sequences.ids()[i]);
        collected[i].kv_bytes = info.plan_bytes;
        collected[i].kv_bytes_full = info.full_bytes;
    }
    std::vector<float> full;  // [piece][vocabulary]
    for (std::size_t begin = prefix; begin + 1 < text.size(); begin += kPiece) {
        const auto piece = text.subspan(begin, std::min(kPiece, text.size() - 1 - begin));
        for (std::size_t config = 0; config < collected.size(); ++config) {
            std::vector<DecodeInput> inputs;
            for (const Token token : piece) {
                inputs.push_back({sequences.ids()[config], token, true});
            }
            if (auto done = engine.decode(inputs); !done) return done;
            if (config == 0) full.clear();
            for (std::size_t i = 0; i < piece.size(); ++i) {
                const auto logits = engine.logits(i);
                if (config == 0) full.insert(full.end(), logits.begin(), logits.end());
                const auto right = std::span(full).subspan(i * logits.size(), logits.size());
                const auto found = difference(right, logits, text[begin + i + 1]);
                Collected& to = collected[config];
                to.divergence.push_back({chunk, found.divergence});
                to.same_best.push_back({chunk, found.same_best ? 1.0 : 0.0});
                to.dlog_probability.push_back(
                    {chunk, found.log_probability - found.log_probability_full});
                to.each.push_back(found.divergence);
                to.log_probability += found.log_probability;
            }
        }
    }
    return {};
}

}  // namespace

Difference difference(std::span<const float> full, std::span<const float> other, Token next) {
    assert(full.size() == other.size() && static_cast<std::size_t>(next) < full.size());
    const double full_sum = log_sum(full);
    const double other_sum = log_sum(other);
    Difference result;
    for (std::size_t i = 0; i < full.size(); ++i) {
        const double p = static_cast<double>(full[i]) - full_sum;
        const double q = static_cast<double>(other[i]) - other_sum;
        const double weight = std::exp(p);
        if (weight > 0) result.divergence += weight * (p - q);
    }
    result.divergence = std::max(result.divergence, 0.0);  // rounding
    result.same_best = best_token(full) == best_token(other);
    const auto token = static_cast<std::size_t>(next);
    result.log_probability_full = static_cast<double>(full[token]) - full_sum;
    result.log_probability = static_cast<double>(other[token]) - other_sum;
    return result;
}

Result<std::vector<DivergenceRow>> run_divergence(Engine& engine, std::span<const Token> text,
                                                  std::span<const ConfigUnderTest> configs,
                                                  const DivergenceSettings& settings,
                                                  const Progress& progress) {
    if (settings.prefix < 2 || settings.tokens < 2) {
        return bad_input("a prefix of {} and {} tokens behind it: both must be at least 2",
                         settings.prefix, settings.tokens);
    }
    const auto length = settings.prefix + settings.tokens;
    const std::int64_t context = engine.model().info().context;
    if (context > 0 && length > context) {
        return bad_input("a prefix of {} and {} tokens behind it exceed the context of {}",
                         settings.prefix, settings.tokens, context);
    }
    const auto whole = static_cast<std::int64_t>(text.size()) / length;
    if (whole == 0) {
        return bad_input(
            "the text has {} tokens, one chunk takes {}: give a longer text or a "
            "shorter prefix",
            text.size(), length);
    }
    const auto chunks = settings.chunks > 0 ? std::min(settings.chunks, whole) : whole;
    const auto all = with_full(configs);
    const auto methods = methods_of(all);
    std::vector<Collected> collected(methods.size());
    const auto bos = added_bos(engine.model().tokenizer());
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
        if (progress && !progress(chunk, chunks)) {
            return tl::unexpected(Error{ErrorKind::interrupted, "interrupted"});
        }
        const auto part = text.subspan(static_cast<std::size_t>(chunk * length),
                                       static_cast<std::size_t>(length));
        std::vector<Token> tokens(part.begin(), part.end());
        if (bos) tokens[0] = *bos;
        const Progress inside = [&](std::int64_t, std::int64_t) {
            return !progress || progress(chunk, chunks);
        };
        auto read = read_chunk(engine, tokens, static_cast<std::size_t>(settings.prefix), chunk,
                               methods, collected, inside);
        if (!read) return tl::unexpected(read.error());
    }
    std::vector<DivergenceRow> rows;
    for (std::size_t i = 0; i < collected.size(); ++i) {
        Collected& from = collected[i];
        DivergenceRow row;
        row.method = all[i].name;
        row.rows = all[i].rows;
        row.tokens = static_cast<std::int64_t>(from.each.size());
        row.divergence = clustered_estimate(from.divergence, settings.seed);
        row.same_best = clustered_estimate(from.same_best, settings.seed);
        row.dlog_probability = clustered_estimate(from.dlog_probability, settings.seed);
        row.perplexity = std::exp(-from.log_probability / static_cast<double>(row.tokens));
        const auto rank = from.each.begin() + static_cast<std::ptrdiff_t>(
                                                  0.95 * static_cast<double>(from.each.size() - 1));
        std::nth_element(from.each.begin(), rank, from.each.end());
        row.divergence_95 = *rank;
        row.kv_bytes = from.kv_bytes;
        row.kv_bytes_full = from.kv_bytes_full;
        rows.push_back(std::move(row));
    }
    return rows;
}

}  // namespace headkv
