// The engine on devices that compute with ggml's own operations: sequences of the same plan share a
// cache, one step decodes all of them. A model in stages is computed stage after stage.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/compute.h"
#include "engine/device_cache.h"
#include "engine/device_prefill.h"
#include "headkv/engine.h"

namespace headkv {

class DeviceEngine {
public:
    DeviceEngine(const Pipeline& pipeline, std::shared_ptr<const Model> model,
                 const EngineOptions& options);
    ~DeviceEngine();

    // The method as a device with so many slots makes it (device_layout). Errors (bad_input): those
    // of Method::create and supports().
    static Result<Method> method_for(const MethodConfig& config, const HeadShape& shape,
                                     std::int64_t prompt_tokens, std::int64_t row_bytes,
                                     std::int64_t slots);
    // Error (bad_input): a method whose score needs what a device does not compute.
    static Result<void> supports(const Method& method);

    // `draft`: of all configurations, read behind the prompt.
    Result<std::unique_ptr<DevicePrefill>> start_prefill(std::span<const Token> prompt,
                                                         std::span<const MethodConfig> configs,
                                                         std::span<const Token> draft,
                                                         std::int64_t expected_new_tokens);
    // The sequences of a finished prefill, under ids from `next` on.
    std::vector<SequenceId> take(DevicePrefill& prefill, SequenceId& next);
    Result<std::vector<float>> log_probabilities(std::span<const Token> text,
                                                 const Progress& progress);

    // One token of each of different sequences; logits and best tokens in the order of the inputs.
    Result<void> step(std::span<const DecodeInput> inputs, bool want_logits);
    std::span<const float> logits(std::size_t input) const;
    Token best(std::size_t input) const { return best_[input]; }

    // Operations of the last step, for tests: what a layer costs when nothing else does.
    std::int64_t step_nodes() const;

    // Nothing lies in the device's memory but the weights and what the next prompt takes back.
    bool idle() const;
    std::int64_t peak_bytes(std::size_t stage) const { return peak_bytes_[stage]; }
    void reset_peak();
    // Of the rows kept of a sequence's prompt in a stage's layers.
    std::int64_t plan_bytes(SequenceId id, std::size_t stage) const {
        return sequences_.at(id).stage_bytes[stage];
    }

    bool holds(SequenceId id) const { return sequences_.contains(id); }
    std::int64_t tokens(SequenceId id) const { return sequences_.at(id).tokens; }
    void release(SequenceId id);
    Result<SequenceId> copy(SequenceId id, SequenceId& next);
    SequenceInfo info(SequenceId id) const;
    std::vector<std::vector<std::vector<std::int32_t>>> positions(SequenceId id) const;
    // As Engine::attention; one pass over all layers serves every layer of a step.
    std::vector<std::vector<float>> attention(SequenceId id, std::int64_t layer);

private:
    struct Sequence {
        Method method;
        std::shared_ptr<DeviceCache> cache;
        std::int64_t slot = 0;
        std::int64_t prompt_tokens = 0, tokens = 0, plan_bytes = 0;
        std::int64_t prompt_rows = 0;  // kept of the prompt, all heads
        // Positions held, [layers x kv_heads], when there were `selected` tokens; every head holds
        // all that came since.
        std::vector<std::vector<std::int32_t>> kept;
        std::int64_t selected = 0;
        std::int64_t logged = 0;  // newest tokens whose queries are in the cache's log, one by one
        std::vector<std::int64_t> stage_bytes = {};  // [stages] what plan_bytes are the sum of
    };
    // The part of a step that one cache has.
    struct Share {
        std::shared_ptr<DeviceCache> cache;
        std::int64_t slots = 0;  // the first so many
        bool logs = false;       // its queries are kept for a re-selection
        bool operator==(const Share&) const = default;
    };
    struct Step;
    struct Attention;

    struct Place {
        std::shared_ptr<DeviceCache> cache;
        std::int64_t slot = 0;
    };
    // A slot for a new sequence, taken.
    // Error (failure): out of memory.
    Result<Place> place_for(const Method& method, std::int64_t expected_new_tokens);
    void drop_unused();  // caches that prompts which failed or were given up left behind
    // Gives the sequence's slot back, and the cache's memory behind the last one.
    void leave(const Sequence& sequence);
    Result<void> move(Sequence& sequence, std::int64_t reserve);
    // Room for one more row of every head: cuts the heads back to what the method allows them, by
    // the same score and selection as the prompt; where that frees nothing, more memory.
    Result<void> make_room(Sequence& sequence);
    // Mean attention of the last queries, at most `most`, over the rows held, [layers] and within a
    // layer its groups one behind the other, [group of queries][heads][capacity].
    Result<std::vector<std::vector<float>>> observed(const Sequence& sequence, std::int64_t most);
    // The same of a stage's layers, behind those in `result`.
    Result<void> observe_stage(const Sequence& sequence, std::size_t stage, std::int64_t queries,
                               std::vector<std::vector<float>>& result);
    // Rows `keep` (indices into those held, [layers x kv_heads]) of a sequence into a slot of `to`,
    // which may be its own.
    Result<void> keep_rows(const Sequence& from, DeviceCache& to, std::int64_t slot,
                           const std::vector<std::vector<std::int32_t>>& keep);
    // Moves the rows of a stage's layers for it.
    Result<void> keep_stage(const Sequence& from, DeviceCache& to, std::int64_t slot,
                            const std::vector<std::vector<std::int32_t>>& keep, std::size_t stage);
    // The log of a sequence, to go with its rows.
    Result<void> copy_log(const Sequence& from, DeviceCache& to, std::int64_t slot);
    static std::vector<std::int32_t> held_positions(const Sequence& sequence, std::size_t at);
    using Slots = std::map<const DeviceCache*, std::vector<const DecodeInput*>>;
    void pack_share(const Step& step, std::size_t stage, std::size_t which, const Slots& of_slot,
                    std::vector<std::int32_t>& packed, std::size_t& next);
    Result<void> copy_rows(const Sequence& from, DeviceCache& to, std::int64_t slot);
    Result<void> copy_stage(const Sequence& from, DeviceCache& to, std::int64_t slot,
                            std::size_t stage);
    Result<Step*> step_graph(std::span<const Share> shares, bool want_logits);
    // Builds what a stage computes of a step.
    Result<void> stage_graph(Step& step, std::size_t stage);
    void drop_graphs(const DeviceCache& cache);
    // Weights, caches and the memory of steps on a stage's device.
    std::int64_t bytes_in_use(std::size_t stage) const;
    // Remembers the most; a cache that no sequence and no map has yet is in use besides.
    void note_peak(const DeviceCache* more = nullptr);

    const Pipeline& pipeline_;
    std::shared_ptr<const Model> model_;
    EngineOptions options_;
    AttentionShape shape_;
    std::map<SequenceId, Sequence> sequences_;
    // Caches that have or had a free slot, by what their sequences have in common.
    std::map<std::string, std::shared_ptr<DeviceCache>> caches_;
    std::list<Step> steps_;  // most recently used first
    std::vector<float> logits_;
    std::vector<std::size_t> token_of_;  // of each input: its column in the step
    std::vector<Token> best_;
    struct {
        SequenceId sequence = -1;
        std::int64_t tokens = 0;
        std::vector<std::vector<float>> layers;  // as observed() gives them
    } attention_;                                // of the last query that was asked for
    std::vector<std::int64_t> peak_bytes_;       // [stages]
};

}  // namespace headkv
