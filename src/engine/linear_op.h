// Products of a quantised matrix with several columns on the CPU, panel by panel of the matrix's
// rows. Three ways:
// - few: columns are rounded to 8 bits, as ggml's quantised products round them; weights are
//   unpacked once for all columns (kernels/few_columns.h);
// - exact, for the many columns of a prompt: a panel is dequantised into a thread's scratch for
//   each chunk and multiplied in f32 by oneDNN, so that columns are not rounded;
// - bf16, for the same on CPUs with a matrix unit: a panel is dequantised and packed once a layer
//   and serves every chunk of the prompt; weights and columns are rounded to bf16, sums are f32.
#pragma once

#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/few_columns.h"
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
    enum class Use : std::uint8_t { prompt, answers };
    // `packed`: multiply many columns in bf16 with the panels kept there; null: exactly.
    explicit LinearOps(Use use, PackedLayer* packed = nullptr) : use_(use), packed_(packed) {}

    // Whether there is a product of this kind (exact ones need oneDNN) that pays for so many
    // columns.
    bool pays(const Matrix& w, std::int64_t columns) const;

    // Whether that product is made in bf16: then its input may be, too.
    bool bf16(const Matrix& w, std::int64_t columns) const;

    // w x, x f32 or, with bf16(), bf16 [in, columns] -> f32 [out, columns]. Only where it pays.
    ggml_tensor* multiply(ggml_context* context, const Matrix& w, ggml_tensor* x);

    // Must come before the graph is computed again.
    void restart();

    // Inputs of products, in bf16; x, gate and up f32 [n, columns]. Only with bf16().
    ggml_tensor* norm(ggml_context* context, ggml_tensor* x, ggml_tensor* weight, float epsilon);
    ggml_tensor* swiglu(ggml_context* context, ggml_tensor* gate, ggml_tensor* up);

private:
    struct Plan {
        const Matrix* matrix;
        const kernels::TileKernels* unit;
        PackedLayer::Panels* panels;        // null: exact or few
        std::int64_t columns = 0;           // of few
        std::atomic<std::int64_t> next{0};  // next panel
    };
    enum class Way : std::uint8_t { ggml, few, many };
    Way way(const Matrix& w, std::int64_t columns) const;
    ggml_tensor* multiply_few(ggml_context* context, Plan& plan, ggml_tensor* x);
    static void compute_few(ggml_tensor* out, int thread, int threads, void* data);
    static void compute_few_rounding(ggml_tensor* out, int thread, int threads, void* data);
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

    Use use_;
    PackedLayer* packed_;
    // x -> x in bf16, and in 8 bits: q, k and v share one
    std::map<ggml_tensor*, ggml_tensor*> rounded_, rounded_few_;
    std::vector<std::unique_ptr<Plan>> plans_;
    std::vector<std::unique_ptr<Rounding>> roundings_;
};

}  // namespace headkv
