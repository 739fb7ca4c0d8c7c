// What a model, its caches and the reading of a prompt take of a device's memory, and what a decode
// step over them costs: estimates from sizes alone, before anything is loaded. They follow
// DeviceCache, DevicePrefill and DeviceEngine; docs/capacity.md compares them with measurements.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/error.h"
#include "headkv/method.h"
#include "headkv/model.h"

namespace headkv {

// A device, and what ggml's operations reach on it with Q8_0 weights. The values here are an H100's
// (80 GB), fitted to measurements from before q, k, v and gate, up were one product each; those of
// other GPUs are in measured_gpus(). docs/performance.md has what was measured.
struct DeviceRates {
    double bandwidth = 3350e9;        // bytes a second, as its data sheet has it
    double weights_alone = 0.73;      // share that products with a single column reach
    double weights_together = 0.38;   // with several
    double rows_alone = 0.6;          // attention over the rows of one sequence
    double rows_together = 0.8;       // of several
    double product_flops = 180e12;    // a second, of products with many columns
    double attention_flops = 205e12;  // of a prefill's attention
    double layer_us = 41;             // launches of a layer in a step, one group of heads
    double group_us = 16;  // more for a second group: gathers, and an attention of its own
    std::int64_t context_bytes = 1130 << 20;  // CUDA context, kernels, what ggml takes for itself
};

// GPUs that were measured. Shares of the bandwidth do not carry over: the H200's faster memory is
// used less, as a step's launches and latencies stay.
struct MeasuredGpu {
    std::string_view name;
    std::int64_t memory = 0;  // bytes
    DeviceRates rates;
};
std::span<const MeasuredGpu> measured_gpus();

// What ggml and cuBLAS take of a GPU's memory beside the buffers that are counted here.
constexpr std::int64_t kPoolBytes = 512 << 20;
// Steps for different numbers of sequences that an engine keeps ready.
constexpr std::int64_t kMostGraphs = 8;

// What a driver says of a device's memory, in bytes.
struct FreeMemory {
    std::int64_t limit = 0;            // the most to take, whatever is free; 0: none is given
    std::int64_t free = 0, total = 0;  // total 0: the driver does not say
    std::int64_t loaded = 0;           // weights that are there already, and so are not free
};
// What weights, caches and work may take of it, at least 1; 0: nothing limits them.
std::int64_t usable_bytes(const FreeMemory& memory);

// Layers [first, first + layers) of a model on one device, and what its first and last device have
// besides.
struct ModelPart {
    std::int64_t first = 0, layers = 0;
    bool embeds = false;        // the token embedding
    bool makes_logits = false;  // the output matrix
    bool beside_cpu = false;    // the CPU has all other layers
};
// Of stages, front to back: the first one embeds, the last one makes the logits.
std::vector<ModelPart> parts_of(std::span<const Stage> stages);
// What the weights of a part take in the file. A tied embedding counts on either side.
std::int64_t weight_bytes(const ModelInfo& model, const ModelPart& part);

// Work that a device is asked for: a prompt is read once, for a cache of each method, and the
// caches hold that of `sequences` prompts.
struct DeviceLoad {
    std::vector<MethodConfig> methods;
    std::int64_t prompt = 0;  // tokens, at least 1
    std::int64_t sequences = 1;
    std::int64_t new_tokens = 256;  // of an answer: the full cache reserves as many rows
    std::int64_t chunk = 2048;      // prompt tokens computed at once
    std::int64_t graphs = 1;        // steps for different numbers of sequences that are kept ready
    std::optional<ModelPart> part = {};  // of the model, on this device; nothing: all of it
};

// One sequence in a cache of a method.
struct SequenceUse {
    double rows_mean = 0;              // a head, of the prompt
    std::int64_t rows = 0;             // of all heads
    std::int64_t plan_bytes = 0;       // of these rows: `kv.bytes`
    std::int64_t row_bytes = 0;        // of a row of one head, as stored
    std::int64_t allocated_bytes = 0;  // with the reserve, as place_heads() has it
    std::int64_t mask_bytes = 0;
    std::int64_t log_bytes = 0;        // of the queries that cut a long answer back
    std::int64_t reserve = 0;          // rows that a head may gain while decoding
    std::int64_t groups = 0;           // of heads, each an attention call, over all layers
    std::int64_t largest_group = 0;    // rows of the prompt in one group
    std::int64_t converted_bytes = 0;  // quantised rows: their copies in a step, one group
    std::int64_t converted_row = 0;    // of a row of one head: what of it is converted, as f16
    bool mixed = false;  // keys and values of two types: always converted, see Compute::attend
    std::int64_t observed = 0;  // queries of the prompt that score
    std::int64_t skipped = 0;   // tokens behind them
    double query_decay = 1;     // what they count: others observe for themselves
    bool shared = true;         // its cache is one with other sequences of the same plan
    std::vector<std::int64_t> layer_plan_bytes, layer_bytes;  // [layers] plan_bytes and bytes()
    std::int64_t bytes() const { return allocated_bytes + mask_bytes + log_bytes; }
};
// Errors (bad_input): those of Method::create. For methods whose plan follows the prompt (ada-kv)
// the bytes are those of the budget: what their heads get may take 1/32 and a block a layer more.
// `slots`: of the engine, which places the heads accordingly (device_layout).
Result<SequenceUse> sequence_use(const ModelInfo& model, const MethodConfig& config,
                                 std::int64_t prompt, std::int64_t new_tokens, std::int64_t slots);

// Bytes at the worst moment: a prompt is being read while all sequences are held.
struct MemoryUse {
    std::int64_t weights = 0, caches = 0, prefill = 0, step = 0;
    std::int64_t total() const { return weights + caches + prefill + step; }
};
// `uses`: sequence_use() of each of load.methods.
MemoryUse memory_use(const ModelInfo& model, const DeviceLoad& load,
                     std::span<const SequenceUse> uses);
Result<MemoryUse> memory_use(const ModelInfo& model, const DeviceLoad& load);

// The most sequences of one method that fit into `available` bytes; load.sequences is not looked
// at. -1: not even the model and the reading of one prompt.
std::int64_t most_sequences(const ModelInfo& model, const DeviceLoad& load, const SequenceUse& use,
                            std::int64_t available);

// One token of each of `sequences`, which have `new_tokens` tokens beyond the prompt: their heads
// hold the rows of these up to the reserve.
struct StepCost {
    double weights = 0, rows = 0, products = 0, launches = 0;  // seconds
    double seconds() const { return weights + rows + products + launches; }
};
StepCost step_cost(const ModelInfo& model, const SequenceUse& use, std::int64_t sequences,
                   std::int64_t new_tokens, const DeviceRates& rates);
// Reading a prompt, whatever the method.
double prefill_seconds(const ModelInfo& model, std::int64_t prompt, const DeviceRates& rates);

// The most layers, the last ones but not all, whose work fits into `available` bytes beside the
// output where the CPU has the other layers and the embedding; 0: none.
std::int64_t most_layers(const ModelInfo& model, const DeviceLoad& load, std::int64_t available);

// Error (bad_input) where the load does not fit into `available` bytes of `device`: one line with
// what is needed, and the largest that fits: sequences, else rows, else tokens of the prompt; and
// how many layers, where it was to hold all of them.
// Errors of the methods themselves are left to those who make them.
Result<void> check_fits(const ModelInfo& model, const DeviceLoad& load, std::int64_t available,
                        const std::string& device);

}  // namespace headkv
