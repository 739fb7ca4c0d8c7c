// Products of a quantised matrix with many columns on the CPU, by oneDNN, panel by panel of the
// matrix's rows. Two ways:
// - exact: a panel is dequantised into a thread's scratch for each chunk and multiplied in f32, so
//   activations are never rounded to 8 bits as ggml's quantised products do;
// - bf16, on CPUs with units for it: a panel is dequantised and packed once a layer and serves
// every
//   chunk of the prompt; weights and activations are rounded to bf16, sums are f32.
#pragma once

#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/bf16_product.h"
#include "model/model_impl.h"

namespace headkv {

// The bf16 panels of the layer under way; filled by its first chunk.
class PackedLayer {
public:
    using Panels = std::vector<std::optional<Bf16Product>>;
    Panels& of(const Matrix& w);
    void clear() { matrices_.clear(); }

private:
    std::map<const Matrix*, Panels> matrices_;
};

// Plans of the products of one graph; must live until it has been computed.
class LinearOps {
public:
    // `packed`: multiply in bf16 with the panels kept there; null: exact.
    explicit LinearOps(PackedLayer* packed = nullptr) : packed_(packed) {}

    // Whether this build has the f32 product (oneDNN) and it pays for so many columns.
    static bool pays(const Matrix& w, std::int64_t columns);

    // w x, x f32 [in, columns] -> f32 [out, columns].
    ggml_tensor* multiply(ggml_context* context, const Matrix& w, ggml_tensor* x);

private:
    struct Plan {
        const Matrix* matrix;
        PackedLayer::Panels* panels;        // null: exact
        std::atomic<std::int64_t> next{0};  // next panel
    };
    static void compute(ggml_tensor* out, int thread, int threads, void* data);
    static void compute_bf16(ggml_tensor* out, int thread, int threads, void* data);
    ggml_tensor* rounded(ggml_context* context, ggml_tensor* x);

    PackedLayer* packed_;
    std::map<ggml_tensor*, ggml_tensor*> rounded_;  // x -> x in bf16: q, k and v share one
    std::vector<std::unique_ptr<Plan>> plans_;
};

}  // namespace headkv
