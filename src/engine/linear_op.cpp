#include "engine/linear_op.h"

#include <algorithm>
#include <array>

#ifdef HEADKV_HAVE_DNNL
#include <dnnl.h>
#include <omp.h>
#endif

namespace headkv {

namespace {

// Fewer columns are faster in ggml's own quantised products (measured on AVX2;
// docs/performance.md).
[[maybe_unused]] constexpr std::int64_t kLeastColumns = 48;
// Rows of a panel: enough that packing x in the product is cheap, few enough that threads stay
// even.
constexpr std::int64_t kPanelRows = 96;

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

}  // namespace

bool LinearOps::pays([[maybe_unused]] const Matrix& w, [[maybe_unused]] std::int64_t columns) {
#ifdef HEADKV_HAVE_DNNL
    return columns >= kLeastColumns &&
           (w.file_type == GGML_TYPE_F32 || ggml_get_type_traits(w.file_type)->to_float != nullptr);
#else
    return false;
#endif
}

ggml_tensor* LinearOps::multiply(ggml_context* context, const Matrix& w, ggml_tensor* x) {
    plans_.push_back(std::make_unique<Plan>());
    plans_.back()->matrix = &w;
    std::array<ggml_tensor*, 1> sources{x};
    return ggml_custom_4d(context, GGML_TYPE_F32, w.out, x->ne[1], 1, 1, sources.data(), 1, compute,
                          GGML_N_TASKS_MAX, plans_.back().get());
}

void LinearOps::compute([[maybe_unused]] ggml_tensor* out, int /*thread*/, int /*threads*/,
                        [[maybe_unused]] void* data) {
#ifdef HEADKV_HAVE_DNNL
    // Each of ggml's threads multiplies its own panels; oneDNN must not start threads of its own.
    thread_local const bool single = (omp_set_num_threads(1), true);
    static_cast<void>(single);
    auto& plan = *static_cast<Plan*>(data);
    const auto& w = *plan.matrix;
    const auto* x = static_cast<const float*>(out->src[0]->data);
    const auto columns = out->ne[1];
    const auto panels = (w.out + kPanelRows - 1) / kPanelRows;
    const auto row_bytes = static_cast<std::int64_t>(ggml_row_size(w.file_type, w.in));
    thread_local std::vector<float> panel;
    for (auto i = plan.next.fetch_add(1); i < panels; i = plan.next.fetch_add(1)) {
        const auto first = i * kPanelRows;
        const auto rows = std::min(kPanelRows, w.out - first);
        const auto* bytes = w.file.data() + first * row_bytes;
        const float* weights = nullptr;
        if (w.file_type == GGML_TYPE_F32) {
            weights = reinterpret_cast<const float*>(bytes);
        } else {
            panel.resize(size(kPanelRows * w.in));
            ggml_get_type_traits(w.file_type)->to_float(bytes, panel.data(), rows * w.in);
            weights = panel.data();
        }
        // row-major: out [columns][w.out] = x [columns][in] * panel [rows][in]^T
        dnnl_sgemm('N', 'T', columns, rows, w.in, 1.0F, x,
                   static_cast<dnnl_dim_t>(out->src[0]->nb[1] / sizeof(float)), weights, w.in, 0.0F,
                   static_cast<float*>(out->data) + first, w.out);
    }
#endif
}

}  // namespace headkv
