// The one function of OpenMP that is needed. Its header lies in each compiler's own folder, where
// clang-tidy, which reads what g++ compiles, has none.
#pragma once

// Threads that parallel regions begun by the calling thread may have (OpenMP 5.0, 3.2.1).
extern "C" void omp_set_num_threads(int threads);
