#include "bench/bench.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>

namespace headkv {

namespace {

using Clock = std::chrono::steady_clock;

double elapsed_ms(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// Linux keeps the highest resident size of a process; it can be set back to the present one.
void reset_peak_memory() {
    ::malloc_trim(0);  // else memory that earlier cases freed would count for this one
    std::ofstream("/proc/self/clear_refs") << "5";
}

std::int64_t peak_memory() {
    std::ifstream status("/proc/self/status");
    std::string word;
    while (status >> word) {
        std::int64_t kib = 0;
        if (word == "VmHWM:" && status >> kib) return kib * 1024;
    }
    return 0;
}

// What one run of one case measured.
struct Sample {
    PrefillResult prefill;
    double decode_ms = 0;
    SequenceInfo info;
    std::int64_t allocated_bytes = 0;
    std::int64_t device_peak_bytes = 0;
};

class Sequences {
public:
    Sequences(Engine& engine, SequenceId first) : engine_(&engine), ids_{first} {}
    ~Sequences() {
        for (const SequenceId id : ids_) engine_->release(id);
    }
    Sequences(const Sequences&) = delete;
    Sequences& operator=(const Sequences&) = delete;

    Result<void> grow(std::int64_t count) {
        while (static_cast<std::int64_t>(ids_.size()) < count) {
            const auto copied = engine_->copy(ids_[0]);
            if (!copied) return tl::unexpected(copied.error());
            ids_.push_back(*copied);
        }
        return {};
    }
    const std::vector<SequenceId>& ids() const { return ids_; }

private:
    Engine* engine_;
    std::vector<SequenceId> ids_;
};

// `steps` decode steps, one token a sequence and step.
Result<void> decode_steps(Engine& engine, const std::vector<SequenceId>& sequences,
                          std::span<const Token> tokens) {
    std::vector<DecodeInput> inputs(sequences.size());
    // The next tokens are what an answer needs: a device finds them itself, see DecodeInput.
    const bool logits = engine.model().info().device == "cpu";
    for (const Token token : tokens) {
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            inputs[i] = {.sequence = sequences[i], .token = token, .want_logits = logits};
        }
        if (auto decoded = engine.decode(inputs); !decoded) return decoded;
    }
    return {};
}

Result<Sample> measure(Engine& engine, const BenchCase& what, const BenchSettings& settings,
                       const Progress& go_on) {
    const Tokenizer& tokenizer = engine.model().tokenizer();
    const auto prompt =
        random_tokens(tokenizer, std::max<std::int64_t>(what.depth, 1), settings.seed);
    // The first step builds what later steps reuse; it is no part of the speed.
    const auto tokens = random_tokens(tokenizer, settings.tokens + 1, settings.seed + 1);
    auto prefilled = engine.prefill(
        prompt, {&what.method, 1}, {.progress = go_on, .expected_new_tokens = settings.tokens + 1});
    if (!prefilled) return tl::unexpected(prefilled.error());
    Sample sample;
    sample.prefill = std::move(*prefilled);
    Sequences sequences(engine, sample.prefill.sequences[0]);
    if (auto grown = sequences.grow(what.slots); !grown) return tl::unexpected(grown.error());
    if (auto first = decode_steps(engine, sequences.ids(), std::span(tokens).first(1)); !first) {
        return tl::unexpected(first.error());
    }
    const auto start = Clock::now();
    auto decoded = decode_steps(engine, sequences.ids(), std::span(tokens).subspan(1));
    if (!decoded) return tl::unexpected(decoded.error());
    sample.decode_ms = elapsed_ms(start);
    sample.info = engine.info(sequences.ids()[0]);
    for (const SequenceId id : sequences.ids()) {
        sample.allocated_bytes += engine.info(id).allocated_bytes;
    }
    sample.device_peak_bytes = engine.device_peak_bytes();
    return sample;
}

void add_sample(BenchResult& result, const Sample& sample) {
    result.prefill_ms_all.push_back(sample.prefill.prefill_ms);
    result.decode_ms_all.push_back(sample.decode_ms);
    result.rss_peak_bytes = std::max(result.rss_peak_bytes, peak_memory());
    result.device_peak_bytes = std::max(result.device_peak_bytes, sample.device_peak_bytes);
    result.prompt_tokens = sample.info.prompt_tokens;
    result.rows_kept_mean = sample.info.rows_kept_mean;
    result.kv_bytes = sample.info.plan_bytes;
    result.kv_bytes_full = sample.info.full_bytes;
    result.allocated_bytes = sample.allocated_bytes;
    result.held_bytes = sample.info.held_bytes * result.what.slots;
    result.scratch_bytes = sample.prefill.scratch_bytes;
}

// Multiplications and additions of a causal prefill, as every implementation must do them. The
// products of the last layer and of the logits count for all tokens; they are few.
double prefill_flops(const ModelInfo& model, double tokens) {
    const auto width = static_cast<double>(model.embedding);
    const auto q = static_cast<double>(model.shape.query_heads);
    const auto kv = static_cast<double>(model.shape.kv_heads);
    const auto k = static_cast<double>(model.head_dim_k), v = static_cast<double>(model.head_dim_v);
    const double weights = width * (q * k + kv * (k + v)) + q * v * width +
                           3 * width * static_cast<double>(model.feed_forward);
    const double attention = q * (k + v) * tokens / 2;  // a token: half of all keys on the mean
    return 2 * static_cast<double>(model.shape.layers) * tokens * (weights + attention);
}

// How well a case shows what reading costs without choosing: higher is better, 0: not at all.
int plainness(const BenchCase& what) {
    const auto recipe = find_recipe(what.method.method);
    const MethodConfig& method = what.method;
    if (!recipe || what.depth == 0 || method.share || method.recall ||
        method.store != StoreTypes() || method.options.in_cache_positions) {
        return 0;
    }
    const auto allocate = method.options.allocate.value_or((*recipe)->allocate);
    if ((*recipe)->score == ScoreStep::position && allocate == AllocateStep::uniform) return 2;
    return allocate == AllocateStep::all ? 1 : 0;
}

void finish(BenchResult& result, std::vector<double> compress_ms, const BenchSettings& settings,
            const ModelInfo& model) {
    const auto rate = [](double count, double ms) { return ms > 0 ? count * 1e3 / ms : 0; };
    result.prefill_ms = median(result.prefill_ms_all);
    result.decode_ms = median(result.decode_ms_all);
    result.compress_ms = median(std::move(compress_ms));
    result.prefill_tok_s = rate(static_cast<double>(result.prompt_tokens), result.prefill_ms);
    result.decode_tok_s =
        rate(static_cast<double>(settings.tokens * result.what.slots), result.decode_ms);
    result.prefill_gflop_s =
        rate(prefill_flops(model, static_cast<double>(result.prompt_tokens)), result.prefill_ms) /
        1e9;
    const double held = static_cast<double>(result.held_bytes);
    result.decode_gb_s = rate(static_cast<double>(settings.tokens) *
                                  (static_cast<double>(model.weight_bytes) + held),
                              result.decode_ms) /
                         1e9;
}

}  // namespace

std::optional<std::size_t> case_beside(const std::vector<BenchCase>& cases, std::size_t index) {
    const BenchCase& own = cases[index];
    std::optional<std::size_t> best;
    std::pair<int, bool> rank{0, false};
    for (std::size_t i = 0; i < cases.size(); ++i) {
        const std::pair other{plainness(cases[i]), cases[i].slots == own.slots};
        if (cases[i].depth != own.depth || other.first == 0 || other <= rank) continue;
        best = i;
        rank = other;
    }
    if (best && rank.first == plainness(own)) return std::nullopt;
    return best;
}

Result<std::vector<BenchResult>> run_bench(Engine& engine, const std::vector<BenchCase>& cases,
                                           const BenchSettings& settings,
                                           const BenchProgress& progress, const BenchRound& round) {
    // The first pass over a model reads its weights from disk: that is loading, not speed. A device
    // also loads each kernel, and takes its work buffers, with the first prompt of that size; so it
    // reads one as long as the deepest case has, as llama-bench does, with that case's method,
    // which fits beside the sequences that the engine was made for.
    if (!cases.empty()) {
        BenchCase first;
        first.depth = 32;
        first.method.method = "full";
        if (engine.model().info().device != "cpu") {
            first = *std::ranges::max_element(cases, {}, &BenchCase::depth);
            first.depth = std::min<std::int64_t>(first.depth, 8192);
            first.slots = 1;
        }
        const auto warm = measure(engine, first, {.tokens = 1, .repeats = 1, .seed = 1}, {});
        if (!warm) return tl::unexpected(warm.error());
    }
    std::vector<BenchResult> results;
    for (const BenchCase& what : cases) results.emplace_back().what = what;
    std::vector<std::vector<double>> compress_ms(cases.size());
    const auto total = settings.repeats * static_cast<std::int64_t>(cases.size());
    std::int64_t done = 0;
    // Within a case: only whether to go on.
    const Progress go_on = [&](std::int64_t, std::int64_t) {
        return !progress || progress(done, total);
    };
    for (std::int64_t repeat = 0; repeat < settings.repeats; ++repeat) {
        if (round) {
            if (auto beside = round(repeat); !beside) return tl::unexpected(beside.error());
        }
        for (std::size_t place = 0; place < cases.size(); ++place) {
            const auto i = repeat % 2 == 0 ? place : cases.size() - 1 - place;
            if (progress && !progress(done, total)) {
                return tl::unexpected(Error{ErrorKind::interrupted, "interrupted"});
            }
            reset_peak_memory();
            engine.reset_device_peak();
            const auto sample = measure(engine, cases[i], settings, go_on);
            if (!sample) return tl::unexpected(sample.error());
            ++done;
            add_sample(results[i], *sample);
            compress_ms[i].push_back(sample->prefill.compress_ms);
        }
    }
    for (std::size_t i = 0; i < cases.size(); ++i) {
        finish(results[i], compress_ms[i], settings, engine.model().info());
        const auto beside = case_beside(cases, i);
        if (!beside) continue;
        const auto& plain = results[*beside].prefill_ms_all;
        auto& overheads = results[i].overhead_all;
        std::transform(results[i].prefill_ms_all.begin(), results[i].prefill_ms_all.end(),
                       plain.begin(), std::back_inserter(overheads),
                       [](double own, double other) { return own / other - 1; });
        results[i].overhead = median(overheads);
        results[i].overhead_of = cases[*beside].name;
    }
    return results;
}

std::vector<Token> random_tokens(const Tokenizer& tokenizer, std::int64_t count,
                                 std::uint64_t seed) {
    std::vector<Token> tokens;
    std::uint64_t state = seed * 0x9e3779b97f4a7c15ULL + 1;
    const auto size = static_cast<std::uint64_t>(tokenizer.size());
    while (static_cast<std::int64_t>(tokens.size()) < count) {
        // xorshift64*: the high bits are the good ones.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        const auto token = static_cast<Token>((state * 0x2545f4914f6cdd1dULL >> 33) % size);
        // A tiny vocabulary may have nothing but control tokens at hand: then any will do.
        const bool ordinary = !tokenizer.is_control(token) && !tokenizer.is_end(token);
        if (ordinary || size < 16) tokens.push_back(token);
    }
    return tokens;
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const std::size_t middle = values.size() / 2;
    return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace headkv
