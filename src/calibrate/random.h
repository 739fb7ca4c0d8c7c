// A small generator whose numbers are the same on every platform (the standard distributions'
// are not): filler text, probe order and bootstrap intervals must not depend on the library.
#pragma once

#include <cassert>
#include <cstdint>
#include <utility>
#include <vector>

namespace headkv {

// splitmix64: one add and three xor-multiply rounds a number, any seed is a good seed.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next() {
        state_ += 0x9e3779b97f4a7c15ULL;
        std::uint64_t z = state_;
        z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ (z >> 27U)) * 0x94d049bb133111ebULL;
        return z ^ (z >> 31U);
    }

    // 0 .. n - 1. The bias of the modulus is below 2^-40 for the small n used here.
    std::size_t below(std::size_t n) {
        assert(n > 0);
        return static_cast<std::size_t>(next() % n);
    }

    template <class T>
    void shuffle(std::vector<T>& items) {
        for (std::size_t i = items.size(); i > 1; --i) {
            std::swap(items[i - 1], items[below(i)]);
        }
    }

private:
    std::uint64_t state_;
};

}  // namespace headkv
