// Prefill and decode over compressed caches, for many sequences at once.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "headkv/error.h"
#include "headkv/method.h"
#include "headkv/model.h"

namespace headkv {

// How the long products of a prefill are computed. Decoding is the same with both.
enum class Precision {
    exact,  // f32 activations, dequantised weights
    fast,   // bf16 with f32 sums where the CPU has a matrix unit (AMX); else as exact
};

struct EngineOptions {
    Precision precision = Precision::exact;
    // For tests: `fast` computes in bf16 on every CPU, slowly where there are no units for it.
    bool bf16_anywhere = false;
    // Most prompt tokens a prefill step computes at once; devices take 2048 unless told otherwise.
    std::int64_t chunk = 512;
    std::int64_t slots =
        1;  // sequences expected to decode together: devices reserve memory for them
    // Engine::attention() will be asked for: devices keep the queries that it needs.
    bool keep_queries = false;
    // For tests: computes with ggml's own operations alone, as on a GPU, on every device.
    bool stock_operations = false;
    // Most bytes of a device's memory that weights, caches and work may take; what its driver takes
    // is not counted. 0: what is free. Work that needs more is refused before it begins.
    std::int64_t device_memory = 0;
};

using SequenceId = std::int64_t;

// Progress of a long call: layers done of all. Returning false stops it (ErrorKind::interrupted).
using Progress = std::function<bool(std::int64_t done, std::int64_t total)>;

struct PrefillOptions {
    Progress progress;
    std::int64_t expected_new_tokens = 256;  // hint: room that the full cache reserves at once
};

struct PrefillResult {
    std::vector<SequenceId> sequences;  // one per configuration, in their order
    std::vector<float> logits;          // [vocabulary] after the last prompt token
    // The same where a configuration reads the prompt with other layers that share rows than the
    // first one does: by its index.
    std::map<std::size_t, std::vector<float>> other_logits;
    const std::vector<float>& logits_of(std::size_t config) const {
        const auto other = other_logits.find(config);
        return other == other_logits.end() ? logits : other->second;
    }
    std::int64_t readings = 1;       // how often the prompt was read
    double prefill_ms = 0;           // everything, compression included
    double compress_ms = 0;          // observe + allocate + select + compact, all configurations
    std::int64_t scratch_bytes = 0;  // peak of hidden states + one layer's full K,V + work buffers
};

// What a model makes of a text on its way, f32.
struct TextStates {
    std::vector<float> keys, values;  // [layers][kv_heads][tokens][dim], keys after RoPE
    std::vector<float> final;         // [tokens][embedding] behind the last layer and its norm
};

struct DecodeInput {
    SequenceId sequence = 0;
    Token token = 0;
    // Where no input of a call wants logits, best() tells the most probable next tokens: devices
    // find them without sending the logits.
    bool want_logits = true;
};

struct SequenceInfo {
    std::string method;
    std::int64_t prompt_tokens = 0;
    std::int64_t tokens = 0;    // prompt + everything decoded so far
    double rows_budget = 0;     // mean rows per head asked for
    double rows_kept_mean = 0;  // mean rows per head kept of the prompt, measured
    std::int64_t plan_bytes =
        0;  // rows kept of the prompt x row bytes: what the plan says, exactly
    std::int64_t held_bytes = 0;       // rows held now, generated ones included
    std::int64_t allocated_bytes = 0;  // as allocated: rows + reserve
    std::int64_t archive_bytes = 0;    // rows kept beside the cache for recall, none of the above
    std::int64_t full_bytes = 0;       // a full cache of the prompt in f16, whatever `store` is
    StoreTypes store;                  // how its rows are stored
    bool runs_as_full = false;         // the budget was not below the prompt
};

// What lies on one device of a model in stages.
struct Placement {
    std::string device;
    std::int64_t first_layer = 0, layers = 0;
    std::int64_t weight_bytes = 0;
    std::int64_t kv_bytes = 0;    // of one sequence: rows kept of its prompt, as plan_bytes
    std::int64_t peak_bytes = 0;  // as device_peak_bytes(), of this stage
};

// A prefill under way: the caller decides when its next step runs, and may decode other sequences
// between two steps. Must not outlive its engine. Destroying it gives its memory back.
class PrefillJob {
public:
    PrefillJob(PrefillJob&&) noexcept;
    PrefillJob& operator=(PrefillJob&&) noexcept;
    ~PrefillJob();

    // Computes one layer of the next tokens, at most `most_tokens` of them (0: EngineOptions::chunk
    // tokens); true when all is read. Devices compute whole blocks of 256 tokens, at least one.
    // Errors: out of memory.
    // A step may write a token of a draft instead (MethodOptions::draft).
    Result<bool> step(std::int64_t most_tokens = 0);
    // Tokens x layers; total() may grow where drafts turn out to differ.
    std::int64_t done() const;
    std::int64_t total() const;
    // The same in layers, over all readings of the prompt.
    std::int64_t layers_done() const;
    std::int64_t layers() const;
    // After the last step, once: the sequences. prefill_ms counts the steps only, not what the
    // caller did between them.
    Result<PrefillResult> finish();

private:
    friend class Engine;
    struct Impl;
    explicit PrefillJob(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

// Not thread-safe: one engine, one caller at a time.
class Engine {
public:
    static Result<std::unique_ptr<Engine>> create(std::shared_ptr<const Model> model,
                                                  const EngineOptions& options = {});
    ~Engine();

    const Model& model() const;

    // Reads the prompt once and fills one compressed cache per configuration (>= 1); once more for
    // each map of shared layers (MethodConfig::share) that is not the first one's, and for each
    // drafted answer (MethodOptions::draft) that is not another's. Layer-major:
    // peak memory is weights + hidden states + one layer's full K,V, whatever the methods.
    // Errors: empty prompt, ids outside the vocabulary, prompt above the context (says by how
    // much), Method::create's, out of memory (on a device said before it begins, with what would
    // fit), interrupted. On error no sequence is left behind.
    Result<PrefillResult> prefill(std::span<const Token> prompt,
                                  std::span<const MethodConfig> configs,
                                  const PrefillOptions& options = {});

    // The same in steps. Errors: as prefill, but for interrupted.
    Result<PrefillJob> start_prefill(std::span<const Token> prompt,
                                     std::span<const MethodConfig> configs,
                                     std::int64_t expected_new_tokens = 256);

    // What prefill would refuse, found without work.
    Result<void> check(std::span<const Token> prompt, const MethodConfig& config) const;

    // One step: appends each token to its sequence and attends. Several inputs may name the same
    // sequence: they are its next tokens, in order (a further turn, or a reference answer).
    // logits(i) is valid until the next call. Errors: unknown sequence, token outside the
    // vocabulary.
    Result<void> decode(std::span<const DecodeInput> inputs);
    std::span<const float> logits(std::size_t input) const;  // [vocabulary] after inputs[input]
    // The most probable token after inputs[input]; -1 where neither was computed.
    Token best(std::size_t input) const;

    // A further turn or a long text: decode() in pieces of at most `chunk` tokens. Returns the
    // logits after the last one. A sequence with MethodConfig::recall selects its rows anew with
    // each piece: by the attention of the piece's last queries to all rows since the beginning.
    Result<std::vector<float>> extend(SequenceId sequence, std::span<const Token> tokens);

    // log p(text[i + 1] | text[0..i]) for i = 0 .. text.size() - 2, full cache, in one pass.
    // Same limits and errors as prefill.
    Result<std::vector<float>> log_probabilities(std::span<const Token> text,
                                                 const Progress& progress = {});

    // Mean cosine, over the tokens of `text` but the first, of each query head's value row at a
    // token with what its attention makes of the rows up to there, in [-1, 1]:
    // [layers][query_heads]. Same limits and errors as prefill; CPU engine only (bad_input
    // elsewhere).
    Result<std::vector<double>> value_cosines(std::span<const Token> text,
                                              const Progress& progress = {});
    // Keys, values and final hidden states of a text, read with or without layers that share rows:
    // those have none in the result (zeros). For calibration. Same limits and errors as prefill;
    // CPU engine only.
    Result<TextStates> states(std::span<const Token> text,
                              std::shared_ptr<const LayerMap> share = {});

    void release(SequenceId sequence);  // frees its rows; unknown ids are ignored
    // An independent copy of a sequence (its rows are copied).
    Result<SequenceId> copy(SequenceId sequence);

    // The most bytes of a device's memory that weights, caches and work took at once since the last
    // reset; 0 where this CPU's own kernels compute. What a driver takes for itself is not counted.
    // Of a model in stages the sum over those on GPUs, or over all where there is none.
    std::int64_t device_peak_bytes() const;
    void reset_device_peak();
    // Stage by stage; kv_bytes are 0 where there is no such sequence.
    std::vector<Placement> placement(SequenceId sequence) const;

    SequenceInfo info(SequenceId sequence) const;
    // Original positions of the rows held, sorted: [layers][kv_heads]. None in layers that read
    // another's.
    std::vector<std::vector<std::vector<std::int32_t>>> positions(SequenceId sequence) const;

    // Attention weights of the newest query of one layer over the rows held: [query_heads][rows],
    // rows as in positions()[layer that owns them][query head / group]. Softmax in f32. For
    // calibration. Empty where nothing has been decoded; devices need EngineOptions::keep_queries.
    std::vector<std::vector<float>> attention(SequenceId sequence, std::int64_t layer) const;

private:
    friend class PrefillJob;
    struct Impl;
    explicit Engine(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace headkv
