// Products with weights in bf16 and sums in f32: by oneDNN on CPUs with units for them (AMX,
// AVX-512 BF16), elsewhere by plain loops that nobody should time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

namespace headkv {

// f32 to bf16, round to nearest even; NaN stays NaN.
void to_bf16(std::span<const float> from, std::uint16_t* to);

// A panel of a weight matrix in the order that the CPU's matrix unit wants. Not thread-safe: one
// thread works with one panel at a time.
class Bf16Product {
public:
    // Whether this CPU multiplies bf16 faster than f32, and the build has oneDNN.
    static bool supported();

    // Packs `weights` [rows][depth] f32; they may be thrown away afterwards.
    Bf16Product(std::int64_t rows, std::int64_t depth, const float* weights);
    ~Bf16Product();
    Bf16Product(Bf16Product&&) noexcept;
    Bf16Product& operator=(Bf16Product&&) noexcept;

    // out [columns][out_stride], its first `rows` of each: x [columns][x_stride] bf16 times the
    // weights. The calling thread does all the work.
    void multiply(const std::uint16_t* x, std::int64_t x_stride, std::int64_t columns, float* out,
                  std::int64_t out_stride);

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace headkv
