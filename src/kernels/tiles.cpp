#include "kernels/tiles.h"

#include <new>

namespace headkv::kernels {

PackedBuffer::PackedBuffer(std::int64_t elements) {
    constexpr std::size_t kLine = 64;
    const auto bytes = static_cast<std::size_t>(elements) * sizeof(Bf16);
    data_.reset(static_cast<Bf16*>(std::aligned_alloc(kLine, (bytes + kLine) / kLine * kLine)));
    if (!data_) throw std::bad_alloc();
}

}  // namespace headkv::kernels
