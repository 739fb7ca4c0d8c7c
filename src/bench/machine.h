// What this machine can do at most, measured in a second or two: the yardstick of a bench's
// figures.
#pragma once

#include "headkv/error.h"

namespace headkv {

struct MachineSpeed {
    double copy_gb_s = 0;     // memory read and written by a large copy on all threads, 1e9 bytes
    double read_gb_s = 0;     // memory read by a large sum on all threads
    double f32_gflop_s = 0;   // square f32 product on all threads; 0 without oneDNN
    double bf16_gflop_s = 0;  // the same in bf16 with f32 sums; 0 where the CPU has no such unit
};

// Medians of a few runs with `threads` threads.
MachineSpeed measure_machine(int threads);

}  // namespace headkv
