#include "eval/divergence.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cmath>
#include <functional>
#include <numeric>

#include "calibrate/probe.h"
#include "engine/sequences.h"
#include "eval/perplexity.h"
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

constexpr std::size_t kPiece = 32;  // predictions at a time: their logits are held twice

// The predictions behind one prefix. `text` is prefix + tokens long.
Result<void> read_chunk(Engine& engine, std::span<const Token> text, std::size_t prefix,
                        std::span<const MethodConfig> configs, std::span<DivergenceAnswer> answers,
                        const Progress& progress) {
    PrefillOptions options;
    options.progress = progress;
    options.expected_new_tokens = static_cast<std::int64_t>(text.size() - prefix);
    auto filled = engine.prefill(text.first(prefix), configs, options);
    if (!filled) return tl::unexpected(filled.error());
    const Sequences sequences(engine, filled->sequences);
    for (std::size_t i = 0; i < answers.size(); ++i) {
        const SequenceInfo info = engine.info(sequences.ids()[i]);
        answers[i].kv_bytes = info.plan_bytes;
        answers[i].kv_bytes_full = info.full_bytes;
        answers[i].rows_kept = info.rows_kept_mean;
    }
    std::vector<float> full;  // [piece][vocabulary]
    for (std::size_t begin = prefix; begin + 1 < text.size(); begin += kPiece) {
        const auto piece = text.subspan(begin, std::min(kPiece, text.size() - 1 - begin));
        for (std::size_t config = 0; config < answers.size(); ++config) {
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
                answers[config].divergence.push_back(found.divergence);
                answers[config].same_best.push_back(found.same_best ? 1 : 0);
                answers[config].log_probability.push_back(found.log_probability);
            }
        }
    }
    return {};
}

// Chunks to be read, or why there are none.
Result<std::int64_t> count_chunks(const Engine& engine, std::span<const Token> text,
                                  const DivergenceSettings& settings) {
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
    return settings.chunks > 0 ? std::min(settings.chunks, whole) : whole;
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

nlohmann::json to_json(const DivergenceChunk& chunk) {
    nlohmann::json answers = nlohmann::json::array();
    for (const DivergenceAnswer& answer : chunk.answers) {
        answers.push_back({{"method", answer.method},
                           {"rows", answer.rows},
                           {"divergence", answer.divergence},
                           {"same_best", answer.same_best},
                           {"log_probability", answer.log_probability},
                           {"kv_bytes", answer.kv_bytes},
                           {"kv_bytes_full", answer.kv_bytes_full},
                           {"rows_kept_mean", answer.rows_kept}});
    }
    return {{"chunk", chunk.chunk}, {"seconds", chunk.seconds}, {"answers", std::move(answers)}};
}

std::optional<DivergenceChunk> divergence_chunk_from_json(const nlohmann::json& from) {
    try {
        DivergenceChunk chunk;
        from.at("chunk").get_to(chunk.chunk);
        from.at("seconds").get_to(chunk.seconds);
        for (const nlohmann::json& entry : from.at("answers")) {
            DivergenceAnswer answer;
            entry.at("method").get_to(answer.method);
            entry.at("rows").get_to(answer.rows);
            entry.at("divergence").get_to(answer.divergence);
            entry.at("same_best").get_to(answer.same_best);
            entry.at("log_probability").get_to(answer.log_probability);
            entry.at("kv_bytes").get_to(answer.kv_bytes);
            entry.at("kv_bytes_full").get_to(answer.kv_bytes_full);
            entry.at("rows_kept_mean").get_to(answer.rows_kept);
            const std::size_t n = answer.divergence.size();
            if (n == 0 || answer.same_best.size() != n || answer.log_probability.size() != n) {
                return std::nullopt;
            }
            chunk.answers.push_back(std::move(answer));
        }
        if (chunk.answers.empty()) return std::nullopt;
        return chunk;
    } catch (const nlohmann::json::exception&) {
        return std::nullopt;
    }
}

std::vector<DivergenceRow> summarize(std::span<const DivergenceChunk> chunks, std::uint64_t seed) {
    std::vector<DivergenceRow> rows;
    if (chunks.empty()) return rows;
    for (std::size_t config = 0; config < chunks[0].answers.size(); ++config) {
        DivergenceRow row;
        row.method = chunks[0].answers[config].method;
        row.rows = chunks[0].answers[config].rows;
        std::vector<ProbeValue> divergence, same_best, losses;
        std::vector<double> each;
        double log_probability = 0;
        const auto n = static_cast<double>(chunks.size());
        for (const DivergenceChunk& chunk : chunks) {
            assert(chunk.answers.size() == chunks[0].answers.size());
            const DivergenceAnswer& full = chunk.answers[0];
            const DivergenceAnswer& mine = chunk.answers[config];
            for (std::size_t i = 0; i < mine.divergence.size(); ++i) {
                divergence.push_back({chunk.chunk, mine.divergence[i]});
                same_best.push_back({chunk.chunk, mine.same_best[i]});
                losses.push_back({chunk.chunk, mine.log_probability[i] - full.log_probability[i]});
                each.push_back(mine.divergence[i]);
                log_probability += mine.log_probability[i];
            }
            row.kv_bytes += static_cast<double>(mine.kv_bytes) / n;
            row.kv_bytes_full += static_cast<double>(mine.kv_bytes_full) / n;
            row.rows_kept += mine.rows_kept / n;
        }
        row.tokens = static_cast<std::int64_t>(each.size());
        row.divergence = clustered_estimate(divergence, seed);
        row.same_best = clustered_estimate(same_best, seed);
        row.dlog_probability = clustered_estimate(losses, seed);
        row.perplexity = std::exp(-log_probability / static_cast<double>(row.tokens));
        const auto rank =
            each.begin() + static_cast<std::ptrdiff_t>(0.95 * static_cast<double>(each.size() - 1));
        std::nth_element(each.begin(), rank, each.end());
        row.divergence_95 = *rank;
        rows.push_back(std::move(row));
    }
    return rows;
}

Result<DivergenceRun> run_divergence(Engine& engine, std::span<const Token> text,
                                     std::span<const ConfigUnderTest> configs,
                                     const DivergenceSettings& settings, const Progress& progress,
                                     const DivergenceLog& log) {
    const auto count = count_chunks(engine, text, settings);
    if (!count) return tl::unexpected(count.error());
    const auto all = with_full(configs);
    const auto methods = methods_of(all);
    const auto bos = added_bos(engine.model().tokenizer());
    const auto length = settings.prefix + settings.tokens;
    const std::function<Result<DivergenceChunk>(const std::int64_t&)> read =
        [&](const std::int64_t& index) -> Result<DivergenceChunk> {
        const auto start = std::chrono::steady_clock::now();
        const auto part = text.subspan(static_cast<std::size_t>(index * length),
                                       static_cast<std::size_t>(length));
        std::vector<Token> tokens(part.begin(), part.end());
        if (bos) tokens[0] = *bos;
        DivergenceChunk chunk;
        chunk.chunk = index;
        for (const ConfigUnderTest& config : all) {
            DivergenceAnswer& answer = chunk.answers.emplace_back();
            answer.method = config.name;
            answer.rows = config.rows;
        }
        const Progress inside = [&](std::int64_t, std::int64_t) {
            return !progress || progress(index, *count);
        };
        auto done = read_chunk(engine, tokens, static_cast<std::size_t>(settings.prefix), methods,
                               chunk.answers, inside);
        if (!done) return tl::unexpected(done.error());
        chunk.seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        return chunk;
    };
    std::vector<std::int64_t> indices(static_cast<std::size_t>(*count));
    std::iota(indices.begin(), indices.end(), 0);
    if (!log.file.empty()) {
        const LogFormat<DivergenceChunk> format{
            [](const DivergenceChunk& chunk) { return std::to_string(chunk.chunk); },
            [](const DivergenceChunk& chunk) { return to_json(chunk); },
            divergence_chunk_from_json};
        return run_logged<DivergenceChunk, std::int64_t>(
            indices, [](const std::int64_t& index) { return std::to_string(index); }, read, format,
            log.file, log.identity, progress);
    }
    DivergenceRun run;
    for (const std::int64_t index : indices) {
        if (progress && !progress(index, *count)) {
            return tl::unexpected(Error{ErrorKind::interrupted, "interrupted"});
        }
        auto chunk = read(index);
        if (!chunk) return tl::unexpected(chunk.error());
        run.results.push_back(std::move(*chunk));
    }
    return run;
}

}  // namespace headkv
