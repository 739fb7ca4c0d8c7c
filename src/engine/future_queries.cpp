#include "engine/future_queries.h"

#include <algorithm>
#include <array>
#include <cassert>

#include "engine/compute.h"
#include "headkv/method.h"

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

constexpr std::int64_t kTurnedAtOnce = 64;  // positions

// out [dim, dim, positions]: each dimension's unit vector, at every position.
void compute_units(ggml_tensor* out, int thread, int /*threads*/, void* /*data*/) {
    if (thread != 0) return;
    auto* to = static_cast<float*>(out->data);
    std::fill_n(to, ggml_nelements(out), 0.0F);
    const auto dim = out->ne[0];
    for (std::int64_t i = 0; i < out->ne[2]; ++i) {
        for (std::int64_t d = 0; d < dim; ++d) to[(i * dim + d) * dim + d] = 1;
    }
}

void compute_positions(ggml_tensor* out, int thread, int /*threads*/, void* data) {
    if (thread != 0) return;
    auto* to = static_cast<std::int32_t*>(out->data);
    for (std::int64_t i = 0; i < out->ne[0]; ++i) {
        to[i] = static_cast<std::int32_t>(*static_cast<std::int64_t*>(data) + i);
    }
}

}  // namespace

FutureQueries::FutureQueries(const AttentionShape& shape)
    : shape_(shape),
      origin_(size(shape.heads.query_heads * shape.dim_k)),
      sums_(origin_.size()),
      products_(size(shape.heads.query_heads * shape.dim_k * shape.dim_k)) {}

Result<void> FutureQueries::prepare(const Hyper& hyper, const Weights& weights, std::int64_t tokens,
                                    const std::function<Result<void>(ggml_cgraph*)>& run) {
    const auto dim = shape_.dim_k;
    turn_.assign(size(dim * dim), 0);
    static_assert(kFuturePositions % kTurnedAtOnce == 0);
    for (std::int64_t begin = 0; begin < kFuturePositions; begin += kTurnedAtOnce) {
        constexpr std::int64_t kNodes = 8;
        const auto context = make_context(kNodes);
        auto* c = context.get();
        std::int64_t first = tokens + begin;
        auto* units = ggml_custom_4d(c, GGML_TYPE_F32, dim, dim, kTurnedAtOnce, 1, nullptr, 0,
                                     compute_units, 1, nullptr);
        auto* positions = ggml_custom_4d(c, GGML_TYPE_I32, kTurnedAtOnce, 1, 1, 1, nullptr, 0,
                                         compute_positions, 1, &first);
        auto* turned =
            GraphBuilder{c, hyper, weights}.rotate(weights.layers.at(0), units, positions);
        auto* graph = ggml_new_graph_custom(c, size(kNodes), false);
        ggml_build_forward_expand(graph, turned);
        if (auto done = run(graph); !done) return done;
        // turned [dim, dim, positions]: what becomes of each unit vector, a column of the matrix.
        const auto* from = static_cast<const float*>(turned->data);
        for (std::int64_t i = 0; i < kTurnedAtOnce; ++i) {
            for (std::int64_t column = 0; column < dim; ++column) {
                for (std::int64_t row = 0; row < dim; ++row, ++from) {
                    turn_[size(row * dim + column)] +=
                        static_cast<double>(*from) / static_cast<double>(kFuturePositions);
                }
            }
        }
    }
    return {};
}

ggml_tensor* FutureQueries::add(ggml_context* context, ggml_tensor* q, std::int64_t position) {
    position_ = position;
    next_.store(0);
    std::array<ggml_tensor*, 1> sources{q};
    auto* node = ggml_custom_4d(context, GGML_TYPE_F32, 1, 1, 1, 1, sources.data(), 1, compute,
                                GGML_N_TASKS_MAX, this);
    count_ += std::max<std::int64_t>(0, position + q->ne[2] - std::max(position, kSinkQueries));
    return node;
}

// A unit is a query head: its sums are one thread's.
void FutureQueries::compute(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    auto& self = *static_cast<FutureQueries*>(data);
    const auto* q = out->src[0];
    const auto heads = self.shape_.heads.query_heads;
    const auto dim = self.shape_.dim_k;
    std::vector<double> x(size(dim));
    for (auto head = self.next_.fetch_add(1); head < heads; head = self.next_.fetch_add(1)) {
        float* origin = self.origin_.data() + head * dim;
        double* sums = self.sums_.data() + head * dim;
        double* products = self.products_.data() + head * dim * dim;
        for (auto t = std::max<std::int64_t>(0, kSinkQueries - self.position_); t < q->ne[2]; ++t) {
            const auto* query = reinterpret_cast<const float*>(static_cast<const char*>(q->data) +
                                                               size(t) * q->nb[2]) +
                                head * dim;
            if (self.position_ + t == kSinkQueries) std::copy_n(query, dim, origin);
            for (std::int64_t i = 0; i < dim; ++i) {
                x[size(i)] = static_cast<double>(query[i]) - static_cast<double>(origin[i]);
                sums[i] += x[size(i)];
            }
            for (std::int64_t i = 0; i < dim; ++i) {
                double* row = products + i * dim;
                for (std::int64_t j = i; j < dim; ++j) row[j] += x[size(i)] * x[size(j)];
            }
        }
    }
}

FutureQueries::Moments FutureQueries::moments() const {
    const auto dim = shape_.dim_k;
    const auto heads = shape_.heads.query_heads;
    const auto count = static_cast<double>(std::max<std::int64_t>(1, count_));
    Moments moments;
    moments.mean.resize(size(heads * dim));
    moments.covariance.resize(size(heads * dim * dim));
    std::vector<double> shift(size(dim)), covariance(size(dim * dim)), half(size(dim * dim));
    // A row of `turn_` has two entries at most that are not 0.
    for (std::int64_t head = 0; head < heads; ++head) {
        for (std::int64_t i = 0; i < dim; ++i) shift[size(i)] = sums_[size(head * dim + i)] / count;
        for (std::int64_t i = 0; i < dim; ++i) {
            for (std::int64_t j = i; j < dim; ++j) {
                const double value = products_[size((head * dim + i) * dim + j)] / count -
                                     shift[size(i)] * shift[size(j)];
                covariance[size(i * dim + j)] = covariance[size(j * dim + i)] = value;
            }
        }
        std::fill(half.begin(), half.end(), 0.0);
        for (std::int64_t i = 0; i < dim; ++i) {
            double mean = 0;
            for (std::int64_t k = 0; k < dim; ++k) {
                const double turn = turn_[size(i * dim + k)];
                if (turn == 0) continue;
                mean +=
                    turn * (shift[size(k)] + static_cast<double>(origin_[size(head * dim + k)]));
                for (std::int64_t j = 0; j < dim; ++j) {
                    half[size(i * dim + j)] += turn * covariance[size(k * dim + j)];
                }
            }
            moments.mean[size(head * dim + i)] = static_cast<float>(mean);
        }
        for (std::int64_t j = 0; j < dim; ++j) {
            for (std::int64_t i = 0; i < dim; ++i) {
                double value = 0;
                for (std::int64_t k = 0; k < dim; ++k) {
                    const double turn = turn_[size(j * dim + k)];
                    if (turn != 0) value += half[size(i * dim + k)] * turn;
                }
                moments.covariance[size((head * dim + i) * dim + j)] = static_cast<float>(value);
            }
        }
    }
    return moments;
}

void FutureQueries::clear() {
    count_ = 0;
    std::fill(sums_.begin(), sums_.end(), 0.0);
    std::fill(products_.begin(), products_.end(), 0.0);
}

}  // namespace headkv
