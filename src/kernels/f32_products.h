// Products of f32 matrices by oneDNN, in the calling thread alone.
#pragma once

#include <cstdint>

namespace headkv::kernels {

// Whether this build has oneDNN; without it multiply_f32 must not be called.
bool has_f32_products();

// out[j * out_stride + i] = sum of a[i * in + k] * x[j * x_stride + k] over k: rows of a,
// [rows][in], with columns of x, [columns][x_stride]. out: [columns][out_stride]. Strides in
// values.
//
// Signals that come meanwhile are handled afterwards: oneDNN's kernels (2.6, its issue 4845) let
// the stack pointer point to the heap, where the frame of a signal handler overwrites what lies
// before.
void multiply_f32(const float* a, std::int64_t rows, std::int64_t in, const float* x,
                  std::int64_t x_stride, std::int64_t columns, float* out, std::int64_t out_stride);

}  // namespace headkv::kernels
