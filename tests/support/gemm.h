// Float32 matrix products for the reference: plain loops over packed panels, fast enough for
// thousands of tokens of a small model, and nothing of ggml's arithmetic in them.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace headkv::test {

// A matrix [out][in] whose columns lie in panels of 16 outputs: [out / 16][in][16], zero-padded.
class Packed {
public:
    Packed() = default;
    Packed(std::int64_t out, std::int64_t in);
    // From rows [out][in] ("a weight matrix as stored", "keys by position").
    static Packed from_rows(std::span<const float> rows, std::int64_t out, std::int64_t in);
    // From columns [in][out] ("values by position": in = positions, out = channels).
    static Packed from_columns(std::span<const float> columns, std::int64_t out, std::int64_t in);

    std::int64_t out() const { return out_; }
    std::int64_t in() const { return in_; }
    void set(std::int64_t o, std::int64_t i, float value) {
        data_[static_cast<std::size_t>(((o / 16) * in_ + i) * 16 + o % 16)] = value;
    }
    const float* panel(std::int64_t o) const { return data_.data() + (o / 16) * in_ * 16; }

private:
    std::int64_t out_ = 0, in_ = 0;
    std::vector<float> data_;
};

// y[r][o] = sum over i < `in` of x[r][i] w[o][i], for r < rows and o < `out`; `in` and `out` may be
// below w's own (a causal part). Strides in floats.
struct Product {
    const float* x;
    std::int64_t x_stride;
    float* y;
    std::int64_t y_stride;
    std::int64_t rows, in, out;
};
void multiply(const Packed& w, const Product& p);

// y = x w^T over all cores of the test machine (two): x [rows][w.in()], y [rows][w.out()].
void multiply_parallel(const Packed& w, std::span<const float> x, std::span<float> y,
                       std::int64_t rows);

// Calls body(0 .. count - 1), spread over two threads in contiguous order of claims.
void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& body);

}  // namespace headkv::test
