// Attention over rows of any two types, beside a plain one in double precision.
#include "engine/compute.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <vector>

#include "engine/fixture.h"

namespace headkv::test {
namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

constexpr std::int64_t kDim = 64, kRows = 256, kGroup = 3, kColumns = 5;
constexpr std::int64_t kSeen = 201;  // rows that the mask leaves

std::vector<float> random_values(std::int64_t count, std::uint64_t seed) {
    Random random(seed);
    std::vector<float> values;
    while (std::ssize(values) < count) values.push_back(static_cast<float>(random.normal()));
    return values;
}

// `values` in the type of `tensor`; returns what the rows then hold.
std::vector<float> store(ggml_tensor* tensor, const std::vector<float>& values) {
    std::vector<std::uint8_t> bytes(ggml_nbytes(tensor));
    ggml_quantize_chunk(tensor->type, values.data(), bytes.data(), 0, ggml_nrows(tensor),
                        tensor->ne[0], nullptr);
    ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
    std::vector<float> held(values.size());
    ggml_get_type_traits(tensor->type)->to_float(bytes.data(), held.data(), std::ssize(held));
    return held;
}

// [kDim, kGroup, 1, kColumns], as ggml gives it.
std::vector<double> plain(const std::vector<float>& q, const std::vector<float>& k,
                          const std::vector<float>& v, double scale) {
    std::vector<double> result(q.size(), 0.0);
    for (std::int64_t at = 0; at < kColumns * kGroup; ++at) {
        const auto first = at / kGroup * kRows;
        std::vector<double> weights;
        double sum = 0;
        for (std::int64_t row = 0; row < kSeen; ++row) {
            double product = 0;
            for (std::int64_t d = 0; d < kDim; ++d) {
                product += static_cast<double>(q[size(at * kDim + d)]) *
                           static_cast<double>(k[size((first + row) * kDim + d)]);
            }
            sum += weights.emplace_back(std::exp(product * scale));
        }
        for (std::int64_t row = 0; row < kSeen; ++row) {
            for (std::int64_t d = 0; d < kDim; ++d) {
                result[size(at * kDim + d)] +=
                    weights[size(row)] / sum *
                    static_cast<double>(v[size((first + row) * kDim + d)]);
            }
        }
    }
    return result;
}

class Attend : public testing::TestWithParam<std::pair<ggml_type, ggml_type>> {};

TEST_P(Attend, IsThePlainOne) {
    const auto [type_k, type_v] = GetParam();
    const TempFolder folder;
    TinyModel tiny;
    tiny.head_dim = kDim;  // a device refuses heads that it has no attention for
    write_tiny_model(tiny, folder / "tiny.gguf");
    const char* device = std::getenv("HEADKV_TEST_DEVICE");  // as in the device tests
    const auto model = Model::load(folder / "tiny.gguf",
                                   {.device = device == nullptr ? "cpu" : device, .threads = 2});
    ASSERT_TRUE(model) << model.error().message;
    Threads threads;
    const auto compute = Compute::create(**model, (*model)->impl().stages.back().device, threads);
    ASSERT_TRUE(compute);
    auto* backend = (*compute)->backend();
    const auto context = make_context(64);
    auto* c = context.get();
    auto* q = ggml_new_tensor_4d(c, GGML_TYPE_F32, kDim, 1, kGroup, kColumns);
    auto* k = ggml_new_tensor_4d(c, type_k, kDim, kRows, 1, kColumns);
    auto* v = ggml_new_tensor_4d(c, type_v, kDim, kRows, 1, kColumns);
    auto* mask = ggml_new_tensor_4d(c, GGML_TYPE_F16, kRows, 1, 1, kColumns);
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(c, backend));
    ASSERT_TRUE(buffer);
    const auto queries = random_values(ggml_nelements(q), 1);
    ggml_backend_tensor_set(q, queries.data(), 0, ggml_nbytes(q));
    const auto keys = store(k, random_values(ggml_nelements(k), 2));
    const auto values = store(v, random_values(ggml_nelements(v), 3));
    std::vector<std::uint16_t> closed(size(ggml_nelements(mask)), 0);
    for (std::size_t i = 0; i < closed.size(); ++i) {
        if (i % kRows >= kSeen) closed[i] = 0xFC00;  // -inf
    }
    ggml_backend_tensor_set(mask, closed.data(), 0, ggml_nbytes(mask));

    constexpr float scale = 0.125F;
    auto* attended = (*compute)->attend(c, q, k, v, mask, scale);
    EXPECT_TRUE(ggml_backend_supports_op(backend, attended));
    // No row behind a lone one may be read: see Compute::attend.
    EXPECT_EQ(attended->src[3]->nb[1], 0U);
    // Equal types go as they are; else both are f16. Another device decides for itself.
    if (device == nullptr) {
        EXPECT_EQ(attended->src[1]->type, type_k == type_v ? type_k : GGML_TYPE_F16);
        EXPECT_EQ(attended->src[2]->type, type_k == type_v ? type_v : GGML_TYPE_F16);
    }
    auto* graph = (*compute)->new_graph(c, 16, (*compute)->key_of_passing_graphs());
    ggml_build_forward_expand(graph, attended);
    WorkMemory work(backend);
    ASSERT_TRUE(work.place(graph));
    ASSERT_TRUE((*compute)->run(graph));
    std::vector<float> ours(size(ggml_nelements(attended)));
    ggml_backend_tensor_get(attended, ours.data(), 0, ggml_nbytes(attended));
    const auto right = plain(queries, keys, values, static_cast<double>(scale));
    ASSERT_EQ(ours.size(), right.size());
    // Queries are rounded to the keys' precision: to 8 bits where these are quantised.
    // A GPU takes queries and weights as f16.
    const bool rounded = ggml_is_quantized(attended->src[1]->type) || device != nullptr;
    const double near = rounded ? 2e-2 : 3e-3;
    for (std::size_t i = 0; i < ours.size(); ++i) {
        EXPECT_NEAR(static_cast<double>(ours[i]), right[i], near) << i;
    }
}

INSTANTIATE_TEST_SUITE_P(Types, Attend,
                         testing::Values(std::pair{GGML_TYPE_F16, GGML_TYPE_F16},
                                         std::pair{GGML_TYPE_Q8_0, GGML_TYPE_Q8_0},
                                         std::pair{GGML_TYPE_Q8_0, GGML_TYPE_Q4_0},
                                         std::pair{GGML_TYPE_Q4_0, GGML_TYPE_Q8_0},
                                         std::pair{GGML_TYPE_F16, GGML_TYPE_Q8_0},
                                         std::pair{GGML_TYPE_Q4_0, GGML_TYPE_F16}),
                         [](const auto& each) {
                             return std::string(ggml_type_name(each.param.first)) + "_" +
                                    ggml_type_name(each.param.second);
                         });

}  // namespace
}  // namespace headkv::test
