#include "engine/linear_op.h"

#include <ggml-backend.h>

#include <algorithm>
#include <array>
#include <cstddef>

#include "kernels/f32_products.h"

namespace headkv {

namespace {

// From so many columns on a prompt's are multiplied without rounding them to 8 bits. Fewer are
// faster in quantised products (docs/performance.md): of repacked weights, which gain from columns
// in ggml, too, and of the types that ggml does not repack.
constexpr std::int64_t kLeastColumns = 48, kLeastColumnsPlain = 24;
// From so many on weights are unpacked once for all of them.
constexpr std::int64_t kLeastFew = 2;
// Rows of a panel: enough that packing x in the product is cheap, few enough that threads stay even
// (of 192 rows, three panels of a small model's matrix leave the second of two threads idle).
constexpr std::int64_t kPanelRows = 96;
// The same for few columns, in units of what their kernel takes at once: so many panels a thread,
// of so many units at most.
constexpr std::int64_t kUnitsOfThread = 8, kMostUnits = 8;

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

std::optional<kernels::WeightType> weight_type(ggml_type type) {
    using kernels::WeightType;
    switch (type) {
        case GGML_TYPE_Q4_0:
            return WeightType::q4_0;
        case GGML_TYPE_Q4_1:
            return WeightType::q4_1;
        case GGML_TYPE_Q5_0:
            return WeightType::q5_0;
        case GGML_TYPE_Q5_1:
            return WeightType::q5_1;
        case GGML_TYPE_Q8_0:
            return WeightType::q8_0;
        case GGML_TYPE_Q4_K:
            return WeightType::q4_K;
        case GGML_TYPE_Q5_K:
            return WeightType::q5_K;
        case GGML_TYPE_Q6_K:
            return WeightType::q6_K;
        default:
            return std::nullopt;
    }
}

// Only buffers of ggml's own layouts are not plain host memory on the CPU.
bool repacked(const Matrix& w) { return !ggml_backend_buffer_is_host(w.tensor->buffer); }

// Whether weights unpacked once for several columns beat ggml, which takes each column by itself
// but where it has repacked them: there its products are as fast as those without VNNI.
bool few_pays(const Matrix& w, std::int64_t columns) {
    const auto kernel = kernels::best_few_columns().name;
    return columns >= kLeastFew && weight_type(w.file_type) &&
           (kernel == "vnni" || (kernel == "avx2" && !repacked(w)));
}

}  // namespace

PackedLayer::Panels& PackedLayer::of(const Matrix& w) {
    auto& panels = matrices_[&w];
    panels.resize(size((w.out + kPanelRows - 1) / kPanelRows));
    return panels;
}

LinearOps::Way LinearOps::way(const Matrix& w, std::int64_t columns) const {
    const bool few = few_pays(w, columns);
    if (few && use_ == Use::answers) return Way::few;
    const bool many = columns >= (repacked(w) ? kLeastColumns : kLeastColumnsPlain);
    if (many && (packed_ != nullptr || kernels::has_f32_products()) &&
        (w.file_type == GGML_TYPE_F32 || ggml_get_type_traits(w.file_type)->to_float != nullptr)) {
        return Way::many;
    }
    return few ? Way::few : Way::ggml;
}

bool LinearOps::pays(const Matrix& w, std::int64_t columns) const {
    return way(w, columns) != Way::ggml;
}

bool LinearOps::bf16(const Matrix& w, std::int64_t columns) const {
    return packed_ != nullptr && way(w, columns) == Way::many;
}

ggml_tensor* LinearOps::multiply(ggml_context* context, const Matrix& w, ggml_tensor* x) {
    plans_.push_back(std::make_unique<Plan>());
    auto& plan = *plans_.back();
    plan.matrix = &w;
    if (way(w, x->ne[1]) == Way::few) return multiply_few(context, plan, x);
    plan.unit = packed_ != nullptr ? &packed_->unit() : nullptr;
    plan.panels = packed_ != nullptr ? &packed_->of(w) : nullptr;
    std::array<ggml_tensor*, 1> sources{packed_ != nullptr ? rounded(context, x) : x};
    return ggml_custom_4d(context, GGML_TYPE_F32, w.out, x->ne[1], 1, 1, sources.data(), 1,
                          packed_ != nullptr ? compute_bf16 : compute, GGML_N_TASKS_MAX, &plan);
}

ggml_tensor* LinearOps::multiply_few(ggml_context* context, Plan& plan, ggml_tensor* x) {
    plan.columns = x->ne[1];
    auto& known = rounded_few_[x];
    std::array<ggml_tensor*, 1> sources{x};
    if (known == nullptr) {
        known = ggml_custom_4d(context, GGML_TYPE_I8,
                               kernels::RoundedColumns::bytes(x->ne[0], x->ne[1]), 1, 1, 1,
                               sources.data(), 1, compute_few_rounding, GGML_N_TASKS_MAX, nullptr);
    }
    sources = {known};
    return ggml_custom_4d(context, GGML_TYPE_F32, plan.matrix->out, plan.columns, 1, 1,
                          sources.data(), 1, compute_few, GGML_N_TASKS_MAX, &plan);
}

void LinearOps::restart() {
    for (auto& plan : plans_) plan->next = 0;
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

void LinearOps::compute_few_rounding(ggml_tensor* out, int thread, int threads, void* /*data*/) {
    const auto* x = out->src[0];
    const auto blocks = x->ne[0] / kernels::RoundedColumns::kBlock;
    const kernels::RoundedColumns to(static_cast<std::byte*>(out->data), x->ne[0], x->ne[1]);
    const auto& kernel = kernels::best_few_columns();
    // this thread's part of all blocks of all columns
    const auto end = blocks * x->ne[1] * (thread + 1) / threads;
    for (auto at = blocks * x->ne[1] * thread / threads; at < end;) {
        const auto index = at / blocks, first = at % blocks;
        const auto last = std::min(blocks, first + end - at);
        kernel.round(column(x, index), first, last, index, to);
        at += last - first;
    }
}

void LinearOps::compute_few(ggml_tensor* out, int /*thread*/, int threads, void* data) {
    auto& plan = *static_cast<Plan*>(data);
    const auto& w = *plan.matrix;
    const kernels::RoundedColumns x(static_cast<std::byte*>(out->src[0]->data), w.in, plan.columns);
    const auto& kernel = kernels::best_few_columns();
    const auto type = *weight_type(w.file_type);
    const auto row_bytes = w.in / kernels::block_values(type) * kernels::block_bytes(type);
    // Few enough rows that threads stay even.
    const auto units = w.out / (threads * kUnitsOfThread) / kernels::kFewColumnsRows;
    const auto panel = std::clamp<std::int64_t>(units, 1, kMostUnits) * kernels::kFewColumnsRows;
    for (auto first = plan.next.fetch_add(panel); first < w.out;
         first = plan.next.fetch_add(panel)) {
        kernel.multiply(type, w.file.data() + first * row_bytes, std::min(panel, w.out - first), x,
                        static_cast<float*>(out->data) + first, w.out);
    }
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

// Each of ggml's threads multiplies its own panels.
void LinearOps::compute(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    auto& plan = *static_cast<Plan*>(data);
    const auto& w = *plan.matrix;
    const auto* x = static_cast<const float*>(out->src[0]->data);
    const auto stride = static_cast<std::int64_t>(out->src[0]->nb[1] / sizeof(float));
    const auto panels = (w.out + kPanelRows - 1) / kPanelRows;
    for (auto i = plan.next.fetch_add(1); i < panels; i = plan.next.fetch_add(1)) {
        const auto first = i * kPanelRows;
        const auto rows = std::min(kPanelRows, w.out - first);
        kernels::multiply_f32(dequantise(w, first, rows), rows, w.in, x, stride, out->ne[1],
                              static_cast<float*>(out->data) + first, w.out);
    }
}

}  // namespace headkv
