// One pool of threads for all kernels of the process.
//
// Rules:
//  - Threads never change a result: kernels write disjoint ranges, or per-block partials that are added in sequence.
//  - The pool is made by the first parallel call and lives as long as the process. A forked child makes its own:
//    the parent's threads do not exist there, and waiting for them is how OpenMP programs hang.
//  - Any number of callers may use it at once; a caller works on its own job, so progress never depends on the pool.
//  - Pool threads block every signal: Python's handlers run in the main thread and must interrupt *its* system calls.
#pragma once

#include <cstddef>
#include <functional>

namespace fedmq {

// The smallest piece of work that is worth sending to another thread, in elements.
constexpr std::size_t kSerialBelow = std::size_t{256} << 10;

// Threads used when a call does not say: FEDMQ_NUM_THREADS, else the CPUs that this process may run on.
// Throws std::invalid_argument when FEDMQ_NUM_THREADS is not a positive integer.
int default_threads();

// Calls body(first, last) for ranges that cover [0, n). Every range but the last is a multiple of `align` elements
// long and starts at a multiple of it. `threads` counts the caller; 0 means default_threads(). The body must not throw.
void parallel_for(std::size_t n, std::size_t align, int threads,
                  const std::function<void(std::size_t first, std::size_t last)>& body);

}  // namespace fedmq
