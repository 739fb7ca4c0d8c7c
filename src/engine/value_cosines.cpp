#include "engine/value_cosines.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

// Of two rows of which one may be zero: then they have no direction in common.
double cosine(const float* a, const float* b, std::int64_t dim) {
    double product = 0, squares_a = 0, squares_b = 0;
    for (std::int64_t d = 0; d < dim; ++d) {
        const auto x = static_cast<double>(a[d]), y = static_cast<double>(b[d]);
        product += x * y;
        squares_a += x * x;
        squares_b += y * y;
    }
    const double lengths = std::sqrt(squares_a * squares_b);
    return lengths > 0 ? product / lengths : 0;
}

}  // namespace

ValueCosines::ValueCosines(const AttentionShape& shape)
    : shape_(shape),
      sums_(size(shape.heads.layers * shape.heads.query_heads)),
      counts_(size(shape.heads.layers)) {}

ggml_tensor* ValueCosines::add(ggml_context* context, ggml_tensor* attended, ggml_tensor* v,
                               std::int64_t layer, std::int64_t position) {
    layer_ = layer;
    position_ = position;
    next_.store(0);
    std::array<ggml_tensor*, 2> sources{attended, v};
    auto* node = ggml_custom_4d(context, GGML_TYPE_F32, 1, 1, 1, 1, sources.data(), 2, compute,
                                GGML_N_TASKS_MAX, this);
    counts_[size(layer)] += v->ne[2] - (position == 0 ? 1 : 0);
    return node;
}

// A unit is a query head: its sum is one thread's.
void ValueCosines::compute(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    auto& self = *static_cast<ValueCosines*>(data);
    const auto* attended = out->src[0];
    const auto* v = out->src[1];
    const auto heads = self.shape_.heads.query_heads;
    const auto dim = self.shape_.dim_v;
    for (auto head = self.next_.fetch_add(1); head < heads; head = self.next_.fetch_add(1)) {
        double sum = 0;
        for (std::int64_t t = self.position_ == 0 ? 1 : 0; t < v->ne[2]; ++t) {
            const auto* result =
                reinterpret_cast<const float*>(static_cast<const char*>(attended->data) +
                                               size(t) * attended->nb[1]) +
                head * dim;
            const auto* value = reinterpret_cast<const float*>(
                static_cast<const char*>(v->data) + size(t) * v->nb[2] +
                size(head / self.shape_.heads.group()) * v->nb[1]);
            sum += cosine(result, value, dim);
        }
        self.sums_[size(self.layer_ * heads + head)] += sum;
    }
}

std::vector<double> ValueCosines::means() const {
    std::vector<double> means = sums_;
    for (std::size_t i = 0; i < means.size(); ++i) {
        const auto layer = i / size(shape_.heads.query_heads);
        means[i] /= static_cast<double>(std::max<std::int64_t>(1, counts_[layer]));
    }
    return means;
}

}  // namespace headkv
