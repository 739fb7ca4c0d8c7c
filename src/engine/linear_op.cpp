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

// The matrix unit likes wider panels, and packed ones cost nothing to keep.
constexpr std::int64_t kBf16PanelRows = 192;

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

// Rows [first, first + rows) of w in f32; points into the file where it holds f32.
[[maybe_unused]] const float* dequantise(const Matrix& w, std::int64_t first, std::int64_t rows) {
    const auto row_bytes = static_cast<std::int64_t>(ggml_row_size(w.file_type, w.in));
    const auto* bytes = w.file.data() + first * row_bytes;
    if (w.file_type == GGML_TYPE_F32) return reinterpret_cast<const float*>(bytes);
    thread_local std::vector<float> panel;
    panel.resize(size(rows * w.in));
    ggml_get_type_traits(w.file_type)->to_float(bytes, panel.data(), rows * w.in);
    return panel.data();
}

}  // namespace

PackedLayer::Panels& PackedLayer::of(const Matrix& w) {
    auto& panels = matrices_[&w];
    panels.resize(size((w.out + kBf16PanelRows - 1) / kBf16PanelRows));
    return panels;
}

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
    auto& plan = *plans_.back();
    plan.matrix = &w;
    plan.panels = packed_ != nullptr ? &packed_->of(w) : nullptr;
    std::array<ggml_tensor*, 1> sources{packed_ != nullptr ? rounded(context, x) : x};
    return ggml_custom_4d(context, GGML_TYPE_F32, w.out, x->ne[1], 1, 1, sources.data(), 1,
                          packed_ != nullptr ? compute_bf16 : compute, GGML_N_TASKS_MAX, &plan);
}

ggml_tensor* LinearOps::rounded(ggml_context* context, ggml_tensor* x) {
    auto& known = rounded_[x];
    if (known == nullptr) known = ggml_cast(context, x, GGML_TYPE_BF16);
    return known;
}

// A panel belongs to the thread that takes it: it is packed by the first chunk that needs it.
void LinearOps::compute_bf16(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    auto& plan = *static_cast<Plan*>(data);
    const auto& w = *plan.matrix;
    const auto* source = out->src[0];
    const auto panels = static_cast<std::int64_t>(plan.panels->size());
    for (auto i = plan.next.fetch_add(1); i < panels; i = plan.next.fetch_add(1)) {
        const auto first = i * kBf16PanelRows;
        const auto rows = std::min(kBf16PanelRows, w.out - first);
        auto& panel = (*plan.panels)[size(i)];
        if (!panel) panel.emplace(rows, w.in, dequantise(w, first, rows));
        panel->multiply(static_cast<const std::uint16_t*>(source->data),
                        static_cast<std::int64_t>(source->nb[1] / sizeof(std::uint16_t)),
                        out->ne[1], static_cast<float*>(out->data) + first, w.out);
    }
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
    for (auto i = plan.next.fetch_add(1); i < panels; i = plan.next.fetch_add(1)) {
        const auto first = i * kPanelRows;
        const auto rows = std::min(kPanelRows, w.out - first);
        const auto* weights = dequantise(w, first, rows);
        // row-major: out [columns][w.out] = x [columns][in] * panel [rows][in]^T
        dnnl_sgemm('N', 'T', columns, rows, w.in, 1.0F, x,
                   static_cast<dnnl_dim_t>(out->src[0]->nb[1] / sizeof(float)), weights, w.in, 0.0F,
                   static_cast<float*>(out->data) + first, w.out);
    }
#endif
}

}  // namespace headkv
