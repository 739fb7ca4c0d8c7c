#include "kernels/bf16_product.h"

#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#ifdef HEADKV_HAVE_DNNL
#include <omp.h>

#include <dnnl.hpp>
#endif

namespace headkv {

void to_bf16(std::span<const float> from, std::uint16_t* to) {
    for (const float value : from) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, &value, sizeof(bits));
        const std::uint32_t rounded = bits + 0x7FFFU + ((bits >> 16) & 1U);
        *to++ =
            static_cast<std::uint16_t>(std::isnan(value) ? (bits >> 16) | 0x40U : rounded >> 16);
    }
}

namespace {

float from_bf16(std::uint16_t half) {
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

#ifdef HEADKV_HAVE_DNNL

using Memory = dnnl::memory;
constexpr auto kBf16 = Memory::data_type::bf16;
constexpr auto kF32 = Memory::data_type::f32;

const dnnl::engine& cpu() {
    static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    return engine;
}

dnnl::matmul::primitive_desc describe(std::int64_t columns, std::int64_t rows, std::int64_t depth,
                                      std::int64_t x_stride, std::int64_t out_stride,
                                      const Memory::desc& weights) {
    const Memory::desc x({columns, depth}, kBf16, Memory::dims{x_stride, 1});
    const Memory::desc out({columns, rows}, kF32, Memory::dims{out_stride, 1});
    return {dnnl::matmul::desc(x, weights, out), cpu()};
}

// Products compiled so far, for all panels of all layers: a model has few shapes, and compiling one
// for a matrix unit takes tens of milliseconds. Entries stay; a primitive may run in many threads.
class Compiled {
public:
    using Shape = std::array<std::int64_t, 5>;  // columns, rows, depth, x stride, out stride

    static const dnnl::matmul& product(const Shape& shape) {
        auto& self = all();
        const std::lock_guard lock(self.mutex_);
        auto found = self.products_.find(shape);
        if (found == self.products_.end()) {
            const auto weights = self.order(shape[1], shape[2]);
            const auto described =
                describe(shape[0], shape[1], shape[2], shape[3], shape[4], weights);
            found = self.products_.emplace(shape, dnnl::matmul(described)).first;
        }
        return found->second;
    }
    // How the weights of a panel lie in memory.
    static Memory::desc weights(std::int64_t rows, std::int64_t depth) {
        auto& self = all();
        const std::lock_guard lock(self.mutex_);
        return self.order(rows, depth);
    }

private:
    static Compiled& all() {
        static Compiled compiled;
        return compiled;
    }
    const Memory::desc& order(std::int64_t rows, std::int64_t depth) {
        auto found = orders_.find({rows, depth});
        if (found == orders_.end()) {
            // The order that suits a long chunk suits every one.
            const Memory::desc any({depth, rows}, kBf16, Memory::format_tag::any);
            const auto described = describe(512, rows, depth, depth, rows, any);
            found = orders_.emplace(std::pair(rows, depth), described.weights_desc()).first;
        }
        return found->second;
    }

    std::mutex mutex_;
    std::map<std::pair<std::int64_t, std::int64_t>, Memory::desc> orders_;
    std::map<Shape, dnnl::matmul> products_;
};

// Packed and multiplied by oneDNN.
struct Unit {
    Memory weights;

    void pack(std::int64_t rows, std::int64_t depth, const float* from) {
        omp_set_num_threads(1);  // of this thread's regions only
        weights = Memory(Compiled::weights(rows, depth), cpu());
        // oneDNN takes no pointer to const; the source of a reorder is only read.
        Memory plain(Memory::desc({depth, rows}, kF32, Memory::format_tag::ba), cpu(),
                     const_cast<float*>(from));
        dnnl::stream stream(cpu());
        dnnl::reorder(plain, weights).execute(stream, plain, weights);
        stream.wait();
    }

    void multiply(std::int64_t rows, std::int64_t depth, const std::uint16_t* x,
                  std::int64_t x_stride, std::int64_t columns, float* out,
                  std::int64_t out_stride) const {
        omp_set_num_threads(1);
        const auto& product = Compiled::product({columns, rows, depth, x_stride, out_stride});
        const Memory source(Memory::desc({columns, depth}, kBf16, Memory::dims{x_stride, 1}), cpu(),
                            const_cast<std::uint16_t*>(x));
        const Memory result(Memory::desc({columns, rows}, kF32, Memory::dims{out_stride, 1}), cpu(),
                            out);
        dnnl::stream stream(cpu());
        product.execute(
            stream, {{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, result}});
        stream.wait();
    }
};

bool has_unit() {
    const auto isa = dnnl::get_effective_cpu_isa();
    return isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
}

#else

struct Unit {
    void pack(std::int64_t, std::int64_t, const float*) {}
    void multiply(std::int64_t, std::int64_t, const std::uint16_t*, std::int64_t, std::int64_t,
                  float*, std::int64_t) {}
};
bool has_unit() { return false; }

#endif

}  // namespace

struct Bf16Product::Impl {
    std::int64_t rows = 0, depth = 0;
    Unit unit;
    std::vector<std::uint16_t> plain;  // [rows][depth], where there is no unit
};

bool Bf16Product::supported() {
    static const bool answer = has_unit();
    return answer;
}

Bf16Product::Bf16Product(std::int64_t rows, std::int64_t depth, const float* weights)
    : impl_(std::make_unique<Impl>()) {
    impl_->rows = rows;
    impl_->depth = depth;
    if (supported()) {
        impl_->unit.pack(rows, depth, weights);
        return;
    }
    impl_->plain.resize(static_cast<std::size_t>(rows * depth));
    to_bf16({weights, impl_->plain.size()}, impl_->plain.data());
}

Bf16Product::~Bf16Product() = default;
Bf16Product::Bf16Product(Bf16Product&&) noexcept = default;
Bf16Product& Bf16Product::operator=(Bf16Product&&) noexcept = default;

void Bf16Product::multiply(const std::uint16_t* x, std::int64_t x_stride, std::int64_t columns,
                           float* out, std::int64_t out_stride) {
    auto& self = *impl_;
    if (supported()) {
        return self.unit.multiply(self.rows, self.depth, x, x_stride, columns, out, out_stride);
    }
    for (std::int64_t column = 0; column < columns; ++column) {
        for (std::int64_t row = 0; row < self.rows; ++row) {
            float sum = 0;
            for (std::int64_t i = 0; i < self.depth; ++i) {
                sum += from_bf16(x[column * x_stride + i]) *
                       from_bf16(self.plain[static_cast<std::size_t>(row * self.depth + i)]);
            }
            out[column * out_stride + row] = sum;
        }
    }
}

}  // namespace headkv
