// How many threads can run at once.
#pragma once

namespace headkv {

// Cores that this process may run on, at least 1: those of its affinity mask (taskset, cpusets of
// containers) where the system tells, else all of the machine. More threads than that wait for each
// other at every barrier.
int usable_cores();

}  // namespace headkv
