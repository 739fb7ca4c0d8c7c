#include "engine/linear_op.h"

#include <ggml-backend.h>

#include <algorithm>
#include <array>

#ifdef HEADKV_HAVE_DNNL
#include <dnnl.h>

#include "engine/openmp.h"
#endif

namespace headkv {

namespace {

// Fewer columns are faster in ggml's own quantised products (measured on AVX2;
// docs/performance.md): in those of repacked weights, which gain from columns, and in those of the
// types that ggml does not repack, which take each column by itself.
constexpr std::int64_t kLeastColumns = 48, kLeastColumnsPlain = 24;
// Rows of a panel: enough that packing x in the product is cheap, few enough that threads stay even
// (of 192 rows, three panels of a small model's matrix leave the second of two threads idle).
constexpr std::int64_t kPanelRows = 96;

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

// Rows [first, first + rows) of w in f32; points into the file where it holds f32.
const float* dequantise(const Matrix& w, std::int64_t first, std::int64_t rows) {
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
    panels.resize(size((w.out + kPanelRows - 1) / kPanelRows));
    return panels;
}

bool LinearOps::pays(const Matrix& w, std::int64_t columns) const {
    // Only buffers of ggml's own layouts are not plain host memory on the CPU.
    const bool plain = ggml_backend_buffer_is_host(w.tensor->buffer);
    if (columns < (plain ? kLeastColumnsPlain : kLeastColumns)) return false;
#ifndef HEADKV_HAVE_DNNL
    if (packed_ == nullptr) return false;
#endif
    return w.file_type == GGML_TYPE_F32 || ggml_get_type_traits(w.file_type)->to_float != nullptr;
}

ggml_tensor* LinearOps::multiply(ggml_context* context, const Matrix& w, ggml_tensor* x) {
    plans_.push_back(std::make_unique<Plan>());
    auto& plan = *plans_.back();
    plan.matrix = &w;
    plan.unit = packed_ != nullptr ? &packed_->unit() : nullptr;
    plan.panels = packed_ != nullptr ? &packed_->of(w) : nullptr;
    std::array<ggml_tensor*, 1> sources{packed_ != nullptr ? rounded(context, x) : x};
    return ggml_custom_4d(context, GGML_TYPE_F32, w.out, x->ne[1], 1, 1, sources.data(), 1,
                          packed_ != nullptr ? compute_bf16 : compute, GGML_N_TASKS_MAX, &plan);
}

ggml_tensor* LinearOps::round_with(ggml_context* context, std::span<ggml_tensor*> sources,
                                   ggml_custom_op_t function, float epsilon) {
    roundings_.push_back(std::make_unique<Rounding>(Rounding{&packed_->unit(), epsilon}));
    return ggml_custom_4d(context, GGML_TYPE_BF16, sources[0]->ne[0], sources[0]->ne[1], 1, 1,
                          sources.data(), static_cast<int>(sources.size()), function,
                          GGML_N_TASKS_MAX, roundings_.back().get());
}

ggml_tensor* LinearOps::rounded(ggml_context* context, ggml_tensor* x) {
    if (x->type == GGML_TYPE_BF16) return x;
    auto& known = rounded_[x];
    std::array<ggml_tensor*, 1> sources{x};
    if (known == nullptr) known = round_with(context, sources, compute_rounding, 0);
    return known;
}

ggml_tensor* LinearOps::norm(ggml_context* context, ggml_tensor* x, ggml_tensor* weight,
                             float epsilon) {
    std::array<ggml_tensor*, 2> sources{x, weight};
    return round_with(context, sources, compute_norm, epsilon);
}

ggml_tensor* LinearOps::swiglu(ggml_context* context, ggml_tensor* gate, ggml_tensor* up) {
    std::array<ggml_tensor*, 2> sources{gate, up};
    return round_with(context, sources, compute_swiglu, 0);
}

namespace {

const float* column(const ggml_tensor* x, std::int64_t index) {
    return reinterpret_cast<const float*>(static_cast<const char*>(x->data) +
                                          size(index) * x->nb[1]);
}

// function(column, where its rounded values go) for this thread's part of the columns
template <class Function>
void each_column(ggml_tensor* out, int thread, int threads, const Function& function) {
    const auto columns = out->ne[1];
    for (auto i = columns * thread / threads; i < columns * (thread + 1) / threads; ++i) {
        function(i, static_cast<kernels::Bf16*>(out->data) + i * out->ne[0]);
    }
}

}  // namespace

void LinearOps::compute_rounding(ggml_tensor* out, int thread, int threads, void* data) {
    const auto& plan = *static_cast<Rounding*>(data);
    each_column(out, thread, threads, [&](std::int64_t i, kernels::Bf16* to) {
        plan.unit->round(column(out->src[0], i), out->ne[0], to);
    });
}

void LinearOps::compute_norm(ggml_tensor* out, int thread, int threads, void* data) {
    const auto& plan = *static_cast<Rounding*>(data);
    const auto* weight = static_cast<const float*>(out->src[1]->data);
    each_column(out, thread, threads, [&](std::int64_t i, kernels::Bf16* to) {
        plan.unit->round_norm(column(out->src[0], i), weight, out->ne[0], plan.epsilon, to);
    });
}

void LinearOps::compute_swiglu(ggml_tensor* out, int thread, int threads, void* data) {
    const auto& plan = *static_cast<Rounding*>(data);
    each_column(out, thread, threads, [&](std::int64_t i, kernels::Bf16* to) {
        plan.unit->round_swiglu(column(out->src[0], i), column(out->src[1], i), out->ne[0], to);
    });
}

// A panel belongs to the thread that takes it: it is packed by the first chunk that needs it.
void LinearOps::compute_bf16(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    auto& plan = *static_cast<Plan*>(data);
    const auto& w = *plan.matrix;
    const auto* x = static_cast<const kernels::Bf16*>(out->src[0]->data);
    const auto panels = static_cast<std::int64_t>(plan.panels->size());
    for (auto i = plan.next.fetch_add(1); i < panels; i = plan.next.fetch_add(1)) {
        const auto first = i * kPanelRows;
        const auto rows = std::min(kPanelRows, w.out - first);
        auto& panel = (*plan.panels)[size(i)];
        if (!panel) {
            panel.emplace(kernels::packed_weights(rows, w.in));
            plan.unit->pack_weights(dequantise(w, first, rows), rows, w.in, panel->data());
        }
        plan.unit->multiply(panel->data(), rows, w.in, x, w.in, out->ne[1],
                            static_cast<float*>(out->data) + first, w.out);
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
