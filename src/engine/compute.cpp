#include "engine/compute.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <chrono>
#include <cstdlib>
#include <set>

#include "kernels/attention.h"

namespace headkv {

Result<std::unique_ptr<Compute>> Compute::create(const Model& model, ggml_backend_dev_t device,
                                                 Threads& threads) {
    std::unique_ptr<Compute> result(new Compute());
    result->threads_ = model.info().threads;
    result->backend_.reset(ggml_backend_dev_init(device, nullptr));
    if (!result->backend_) {
        return failure("cannot start the {} backend", ggml_backend_dev_name(device));
    }
    result->keys_.push_back(make_context(1));
    result->anchor_ = ggml_new_tensor_1d(result->keys_[0].get(), GGML_TYPE_I32, 1);
    result->anchor_buffer_.reset(
        ggml_backend_alloc_ctx_tensors(result->keys_[0].get(), result->backend_.get()));
    if (!result->anchor_buffer_) {
        return failure("no memory is left on {}", ggml_backend_name(result->backend_.get()));
    }
    result->passing_ = result->new_key();
    if (auto made = result->make_rotations(model.impl().hyper); !made) {
        return tl::unexpected(made.error());
    }
    if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU) {
        if (auto known = result->check_attention(model.impl().hyper); !known) {
            return tl::unexpected(known.error());
        }
        if (auto done = result->launch_attention_alone(); !done) {
            return tl::unexpected(done.error());
        }
        return result;
    }
    // One pool for all graphs: threads that stay awake between the steps of an answer.
    if (!threads) {
        auto params = ggml_threadpool_params_default(result->threads_);
        auto* pool = ggml_threadpool_new(&params);
        if (pool == nullptr) {
            return failure("cannot start {} threads; use fewer with --threads", result->threads_);
        }
        threads = Threads(pool, ggml_threadpool_free);
    }
    result->pool_ = threads;
    ggml_backend_cpu_set_n_threads(result->backend_.get(), result->threads_);
    ggml_backend_cpu_set_threadpool(result->backend_.get(), result->pool_.get());
    return result;
}

Result<void> Compute::check_attention(const Hyper& hyper) const {
    const auto context = make_context(8);
    auto* c = context.get();
    constexpr std::int64_t kRows = 256;
    const auto rows = [&](std::int64_t dim) {
        return ggml_new_tensor_4d(c, GGML_TYPE_F16, dim, kRows, hyper.shape.kv_heads, 1);
    };
    auto* query =
        ggml_new_tensor_4d(c, GGML_TYPE_F32, hyper.head_dim_k, 1, hyper.shape.query_heads, 1);
    auto* mask = ggml_new_tensor_4d(c, GGML_TYPE_F16, kRows, 1, 1, 1);
    auto* attended = ggml_flash_attn_ext(c, query, rows(hyper.head_dim_k), rows(hyper.head_dim_v),
                                         mask, 1.0F, 0.0F, 0.0F);
    if (ggml_backend_supports_op(backend_.get(), attended)) return {};
    return bad_input("{} has no attention for heads of {} and {} values; use --device cpu",
                     ggml_backend_name(backend_.get()), hyper.head_dim_k, hyper.head_dim_v);
}

Result<void> Compute::launch_attention_alone() const {
    constexpr const char* kName = "GGML_CUDA_PDL";
    if (std::getenv(kName) != nullptr) return {};  // somebody's own choice
    const auto context = make_context(16);
    auto* c = context.get();
    constexpr std::int64_t kDim = 64, kRows = 256;
    auto* query = ggml_new_tensor_4d(c, GGML_TYPE_F32, kDim, 1, 1, 1);
    auto* keys = ggml_new_tensor_4d(c, GGML_TYPE_F16, kDim, kRows, 1, 1);
    auto* values = ggml_new_tensor_4d(c, GGML_TYPE_F16, kDim, kRows, 1, 1);
    auto* mask = ggml_new_tensor_4d(c, GGML_TYPE_F16, kRows, 1, 1, 1);
    const ggml_backend_buffer_ptr inputs(ggml_backend_alloc_ctx_tensors(c, backend_.get()));
    auto* attended = ggml_flash_attn_ext(c, query, keys, values, mask, 1.0F, 0.0F, 0.0F);
    if (!ggml_backend_supports_op(backend_.get(), attended)) return {};  // it has no such kernels
    auto* graph = new_graph(c, 8, passing_);
    ggml_build_forward_expand(graph, attended);
    WorkMemory work(backend_.get());
    if (!inputs || !work.place(graph)) {
        return failure("no memory is left on {}", ggml_backend_name(backend_.get()));
    }
    ggml_backend_buffer_clear(inputs.get(), 0);
    setenv(kName, "0", 0);
    auto done = run(graph);
    unsetenv(kName);
    return done;
}

Result<void> Compute::make_rotations(const Hyper& hyper) {
    std::set<std::int64_t> dims;
    for (const auto dim : {hyper.head_dim_k, hyper.head_dim_v}) {
        if (dim % kernels::kQuantBlock == 0) dims.insert(dim);
    }
    if (dims.empty()) return {};
    rotations_context_ = make_context(static_cast<std::int64_t>(dims.size()));
    for (const auto dim : dims) {
        rotations_.push_back(ggml_new_tensor_2d(rotations_context_.get(), GGML_TYPE_F32, dim, dim));
    }
    rotations_buffer_.reset(
        ggml_backend_alloc_ctx_tensors(rotations_context_.get(), backend_.get()));
    if (!rotations_buffer_) {
        return failure("no memory is left on {}", ggml_backend_name(backend_.get()));
    }
    for (auto* matrix : rotations_) {
        const auto dim = matrix->ne[0];
        std::vector<float> values(static_cast<std::size_t>(dim * dim), 0.0F);
        for (std::int64_t i = 0; i < dim; ++i) {
            values[static_cast<std::size_t>(i * dim + i)] = 1;
            kernels::rotate(values.data() + i * dim, dim);
        }
        ggml_backend_tensor_set(matrix, values.data(), 0, ggml_nbytes(matrix));
    }
    return {};
}

ggml_tensor* Compute::rotated(ggml_context* context, ggml_tensor* x) const {
    const auto found =
        std::ranges::find(rotations_, x->ne[0], [](auto* one) { return one->ne[0]; });
    assert(found != rotations_.end() && ggml_is_contiguous(x));
    auto* product = ggml_mul_mat(context, *found, x);
    // A whole matrix of this kind is known to some backends, which then do without multiplying.
    if (std::has_single_bit(static_cast<std::uint64_t>(x->ne[0]))) {
        ggml_mul_mat_set_hint(product, GGML_HINT_SRC0_IS_HADAMARD);
    } else {
        ggml_mul_mat_set_prec(product, GGML_PREC_F32);
    }
    return product;
}

bool Compute::takes(const ggml_tensor* attended) const {
    // The CPU takes any two types; it stands for the device in tests, and there takes what CUDA
    // does.
    auto* device = ggml_backend_get_device(backend_.get());
    const bool on_cpu = ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
    if (on_cpu && attended->src[1]->type != attended->src[2]->type) return false;
    return ggml_backend_supports_op(backend_.get(), attended);
}

ggml_tensor* Compute::attend(ggml_context* context, ggml_tensor* queries, ggml_tensor* keys,
                             ggml_tensor* values, ggml_tensor* mask, float scale) const {
    if (queries->ne[1] == 1 && mask->ne[1] == 1) {
        // ggml's CUDA backend (0.20.2) looks for the end of what a mask shows in blocks of up to
        // eight rows of queries, whether there are so many or not: behind a lone row it read the
        // next column's, behind the last column other memory, and failed where there was none. With
        // a stride of nothing it reads the lone row again.
        mask = ggml_view_4d(context, mask, mask->ne[0], 1, mask->ne[2], mask->ne[3], 0, mask->nb[2],
                            mask->nb[3], 0);
    }
    const auto attention = [&](ggml_tensor* k, ggml_tensor* v) {
        auto* made = ggml_flash_attn_ext(context, queries, k, v, mask, scale, 0.0F, 0.0F);
        ggml_flash_attn_ext_set_prec(made, GGML_PREC_F32);
        return made;
    };
    auto* direct = attention(keys, values);
    if (takes(direct)) return direct;
    // By way of f32: the one type that every backend copies quantised rows to.
    const auto as_f16 = [&](ggml_tensor* rows) {
        if (rows->type == GGML_TYPE_F16) return rows;
        return ggml_cast(context, ggml_cast(context, rows, GGML_TYPE_F32), GGML_TYPE_F16);
    };
    return attention(as_f16(keys), as_f16(values));
}

Result<void> Compute::run(ggml_cgraph* graph) const {
    return checked(ggml_backend_graph_compute(backend_.get(), graph));
}

Result<void> Compute::start(ggml_cgraph* graph) const {
    return checked(ggml_backend_graph_compute_async(backend_.get(), graph));
}

Result<void> Compute::checked(ggml_status status) const {
    if (status == GGML_STATUS_SUCCESS) return {};
    return failure("{} cannot compute: {}", ggml_backend_name(backend_.get()),
                   ggml_status_to_string(status));
}

ggml_tensor* Compute::new_key() {
    keys_.push_back(make_context(1));
    return ggml_view_1d(keys_.back().get(), anchor_, 1, 0);
}

ggml_cgraph* Compute::new_graph(ggml_context* context, std::int64_t nodes, ggml_tensor* key) const {
    auto* graph = ggml_new_graph_custom(context, static_cast<std::size_t>(nodes), false);
    ggml_build_forward_expand(graph, key);
    return graph;
}

WorkMemory::WorkMemory(ggml_backend_t backend)
    : allocator_(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend))) {}

bool WorkMemory::place(ggml_cgraph* graph) {
    if (!allocator_ || !ggml_gallocr_alloc_graph(allocator_.get(), graph)) return false;
    bytes_ = std::max(bytes_, ggml_gallocr_get_buffer_size(allocator_.get(), 0));
    return true;
}

double now_ms() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(now).count();
}

ggml_tensor* columns(ggml_context* context, ggml_tensor* matrix, std::int64_t first,
                     std::int64_t count) {
    return ggml_view_2d(context, matrix, matrix->ne[0], count, matrix->nb[1],
                        static_cast<std::size_t>(first) * matrix->nb[1]);
}

ggml_context_ptr make_context(std::int64_t tensors) {
    const auto count = static_cast<std::size_t>(tensors);
    const auto bytes = count * ggml_tensor_overhead() + ggml_graph_overhead_custom(count, false);
    return ggml_context_ptr(ggml_init({bytes, nullptr, true}));
}

}  // namespace headkv
