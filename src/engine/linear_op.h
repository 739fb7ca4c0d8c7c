// Products of a quantised matrix with many columns on the CPU: panels of the matrix are dequantised
// into each thread's scratch and multiplied in f32 by oneDNN. One dequantised panel serves a whole
// chunk of tokens, so long chunks run at the speed of the f32 product, and activations are never
// rounded to 8 bits as ggml's quantised products do.
#pragma once

#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "model/model_impl.h"

namespace headkv {

// Plans of the products of one graph; must live until it has been computed.
class LinearOps {
public:
    // Whether this build has the f32 product (oneDNN) and it pays for so many columns.
    static bool pays(const Matrix& w, std::int64_t columns);

    // w x, x f32 [in, columns] -> f32 [out, columns].
    ggml_tensor* multiply(ggml_context* context, const Matrix& w, ggml_tensor* x);

private:
    struct Plan {
        const Matrix* matrix;
        std::atomic<std::int64_t> next{0};  // next panel
    };
    static void compute(ggml_tensor* out, int thread, int threads, void* data);
    std::vector<std::unique_ptr<Plan>> plans_;
};

}  // namespace headkv
