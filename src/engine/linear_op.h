// Products of a quantised matrix with many columns on the CPU, panel by panel of the matrix's rows.
// Two ways:
// - exact: a panel is dequantised into a thread's scratch for each chunk and multiplied in f32 by
//   oneDNN, so activations are never rounded to 8 bits as ggml's quantised products do;
// - bf16, on CPUs with a matrix unit: a panel is dequantised and packed once a layer and serves
// every
//   chunk of the prompt; weights and activations are rounded to bf16, sums are f32.
#pragma once

#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/tiles.h"
#include "model/model_impl.h"

namespace headkv {

// The bf16 panels of the layer under way; filled by its first chunk.
class PackedLayer {
public:
    using Panels = std::vector<std::optional<kernels::PackedBuffer>>;
    explicit PackedLayer(const kernels::TileKernels& unit) : unit_(&unit) {}

    const kernels::TileKernels& unit() const { return *unit_; }
    Panels& of(const Matrix& w);
    void clear() { matrices_.clear(); }

private:
    const kernels::TileKernels* unit_;
    std::map<const Matrix*, Panels> matrices_;
};

// Plans of the products of one graph; must live until it has been computed.
class LinearOps {
public:
    // `packed`: multiply in bf16 with the panels kept there; null: exact.
    explicit LinearOps(PackedLayer* packed = nullptr) : packed_(packed) {}

    // Whether there is such a product (exact ones need oneDNN) and it pays for so many columns.
    bool pays(const Matrix& w, std::int64_t columns) const;

    // Whether products are made in bf16: then their inputs may be, too.
    bool bf16() const { return packed_ != nullptr; }

    // w x, x f32 or, with bf16(), bf16 [in, columns] -> f32 [out, columns].
    ggml_tensor* multiply(ggml_context* context, const Matrix& w, ggml_tensor* x);

    // Inputs of products, in bf16; x, gate and up f32 [n, columns]. Only with bf16().
    ggml_tensor* norm(ggml_context* context, ggml_tensor* x, ggml_tensor* weight, float epsilon);
    ggml_tensor* swiglu(ggml_context* context, ggml_tensor* gate, ggml_tensor* up);

private:
    struct Plan {
        const Matrix* matrix;
        const kernels::TileKernels* unit;
        PackedLayer::Panels* panels;        // null: exact
        std::atomic<std::int64_t> next{0};  // next panel
    };
    static void compute(ggml_tensor* out, int thread, int threads, void* data);
    static void compute_bf16(ggml_tensor* out, int thread, int threads, void* data);
    struct Rounding {
        const kernels::TileKernels* unit;
        float epsilon;
    };
    static void compute_rounding(ggml_tensor* out, int thread, int threads, void* data);
    static void compute_norm(ggml_tensor* out, int thread, int threads, void* data);
    static void compute_swiglu(ggml_tensor* out, int thread, int threads, void* data);
    ggml_tensor* round_with(ggml_context* context, std::span<ggml_tensor*> sources,
                            ggml_custom_op_t function, float epsilon);
    ggml_tensor* rounded(ggml_context* context, ggml_tensor* x);

    PackedLayer* packed_;
    std::map<ggml_tensor*, ggml_tensor*> rounded_;  // x -> x in bf16: q, k and v share one
    std::vector<std::unique_ptr<Plan>> plans_;
    std::vector<std::unique_ptr<Rounding>> roundings_;
};

}  // namespace headkv
