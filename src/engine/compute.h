// A ggml backend with its threads, and small owners of ggml objects.
#pragma once

#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "headkv/error.h"
#include "model/model_impl.h"

namespace headkv {

// Threads of the CPU backends of one model, which compute one after the other.
using Threads = std::shared_ptr<ggml_threadpool>;

class Compute {
public:
    // `threads`: of the model's CPU backends, made by the first one. Errors: (failure) the backend
    // or its threads cannot be started; (bad_input) it has no attention for the model's heads.
    static Result<std::unique_ptr<Compute>> create(const Model& model, ggml_backend_dev_t device,
                                                   Threads& threads);

    ggml_backend_t backend() const { return backend_.get(); }
    int threads() const { return threads_; }
    // Error (failure): the backend reports one (out of memory, device lost).
    Result<void> run(ggml_cgraph* graph) const;
    // The same without waiting, on devices that can: what is queued runs in order.
    Result<void> start(ggml_cgraph* graph) const;

    // An empty graph whose first node is `key`. ggml's CUDA backend knows a graph by the address of
    // its first node and replays what it recorded for it; where that address has belonged to a
    // graph that is gone, replays were wrong (ggml 0.20.2). So graphs that are run again get a key
    // of their own that outlives them, and those that are run once share one.
    ggml_cgraph* new_graph(ggml_context* context, std::int64_t nodes, ggml_tensor* key) const;
    ggml_tensor* key_of_passing_graphs() const { return passing_; }
    ggml_tensor* new_key();

    // kernels::rotate on the device: x [dim, ...] f32, contiguous, of one of the model's head dims,
    // which must be a multiple of kernels::kQuantBlock.
    ggml_tensor* rotated(ggml_context* context, ggml_tensor* x) const;

    // ggml_flash_attn_ext with f32 sums. ggml's CUDA kernels take keys and values of one type, or
    // no quantised ones at all: rows that the backend does not take as they are become f16 first,
    // in the graph. Eight nodes at most.
    ggml_tensor* attend(ggml_context* context, ggml_tensor* queries, ggml_tensor* keys,
                        ggml_tensor* values, ggml_tensor* mask, float scale) const;

private:
    Compute() = default;
    // ggml's CUDA backend (0.20.2) lets a kernel begin while the one before it ends (programmatic
    // dependent launch). In recorded graphs its vector kernel for attention then gives wrong
    // values, other ones in every run (seen on an H100). The backend looks at GGML_CUDA_PDL when a
    // kind of kernel is launched for the first time: here attention is launched without, and all
    // other kinds keep what they gain by it. Must come before any other attention. Error (failure):
    // out of memory.
    Result<void> launch_attention_alone() const;
    // Error (bad_input): the backend has no attention for heads of the model's size; its graphs
    // would end the program instead of failing.
    Result<void> check_attention(const Hyper& hyper) const;
    Result<void> checked(ggml_status status) const;
    Result<void> make_rotations(const Hyper& hyper);
    bool takes(const ggml_tensor* attended) const;  // its keys and values as they are
    Threads pool_;
    ggml_backend_ptr backend_;  // ends before its threads
    ggml_backend_buffer_ptr anchor_buffer_;
    std::vector<ggml_context_ptr> keys_;  // the anchor, then views of it
    ggml_tensor* anchor_ = nullptr;
    ggml_tensor* passing_ = nullptr;
    ggml_context_ptr rotations_context_;
    ggml_backend_buffer_ptr rotations_buffer_;
    std::vector<ggml_tensor*> rotations_;  // [dim, dim] of each head dim
    int threads_ = 1;
};

// The memory of the intermediate results of graphs that run one after the other; grows.
class WorkMemory {
public:
    explicit WorkMemory(ggml_backend_t backend);
    bool place(ggml_cgraph* graph);               // false: out of memory
    std::size_t bytes() const { return bytes_; }  // the most so far

private:
    ggml_gallocr_ptr allocator_;
    std::size_t bytes_ = 0;
};

double now_ms();  // of a clock that only goes forward

// Columns [first, first + count) of a matrix, no copy.
ggml_tensor* columns(ggml_context* context, ggml_tensor* matrix, std::int64_t first,
                     std::int64_t count);

// Descriptions of tensors without data: `tensors` of them and a graph of as many nodes.
ggml_context_ptr make_context(std::int64_t tensors);

}  // namespace headkv
