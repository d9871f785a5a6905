#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <list>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

namespace fedmq {
namespace {

constexpr int kMaxThreads = 1024;

// Enough ranges that a thread which lost its CPU for a while does not hold up the others.
constexpr std::size_t kRangesPerThread = 8;

struct Job {
    const std::function<void(std::size_t, std::size_t)>* body;
    std::size_t n;
    std::size_t step;
    std::atomic<std::size_t> next{0};
    int wanted;      // threads that may still join; guarded by the pool's mutex
    int active = 0;  // threads inside run(); guarded by the pool's mutex

    void run() {
        for (;;) {
            const std::size_t first = next.fetch_add(step, std::memory_order_relaxed);
            if (first >= n) return;
            (*body)(first, std::min(n, first + step));
        }
    }
};

class Pool {
public:
    explicit Pool(pid_t owner) : owner_(owner) {}

    pid_t owner() const { return owner_; }

    void run(Job& job) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            grow(job.wanted);
            jobs_.push_back(&job);
        }
        work_.notify_all();
        job.run();
        std::unique_lock<std::mutex> lock(mutex_);
        jobs_.remove(&job);
        done_.wait(lock, [&] { return job.active == 0; });
    }

private:
    // Called with the mutex held. A machine out of threads gives fewer; the caller does the rest of the work.
    void grow(int threads) {
        if (size_ >= threads) return;
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            for (; size_ < threads; ++size_) std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            Job* job = nullptr;
            work_.wait(lock, [&] { return (job = claim()) != nullptr; });
            lock.unlock();
            job->run();
            lock.lock();
            if (--job->active == 0) done_.notify_all();
        }
    }

    Job* claim() {
        for (Job* job : jobs_) {
            if (job->wanted > 0) {
                --job->wanted;
                ++job->active;
                return job;
            }
        }
        return nullptr;
    }

    const pid_t owner_;
    std::mutex mutex_;
    std::condition_variable work_, done_;
    std::list<Job*> jobs_;
    int size_ = 0;
};

// Never deleted: its threads may outlive main(), and a forked child cannot join threads that it does not have.
std::atomic<Pool*> current{nullptr};

Pool& pool() {
    const pid_t self = getpid();
    Pool* found = current.load(std::memory_order_acquire);
    while (found == nullptr || found->owner() != self) {
        Pool* fresh = new Pool(self);
        if (current.compare_exchange_strong(found, fresh, std::memory_order_acq_rel)) return *fresh;
        delete fresh;
    }
    return *found;
}

int available_cpus() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int threads_from_environment() {
    const char* text = std::getenv("FEDMQ_NUM_THREADS");
    if (text == nullptr || *text == '\0') return std::min(available_cpus(), kMaxThreads);
    char* end = nullptr;
    errno = 0;
    const long value = std::strtol(text, &end, 10);
    if (errno != 0 || *end != '\0' || value < 1 || value > kMaxThreads) {
        throw std::invalid_argument("FEDMQ_NUM_THREADS must be an integer from 1 to " + std::to_string(kMaxThreads) +
                                    ", not '" + text + "'");
    }
    return static_cast<int>(value);
}

}  // namespace

int default_threads() {
    static const int threads = threads_from_environment();
    return threads;
}

void parallel_for(std::size_t n, std::size_t align, int threads,
                  const std::function<void(std::size_t, std::size_t)>& body) {
    if (n == 0) return;
    if (n < kSerialBelow) return body(0, n);
    if (threads == 0) threads = default_threads();
    threads = std::min(threads, kMaxThreads);
    if (threads == 1) return body(0, n);

    const std::size_t ranges = static_cast<std::size_t>(threads) * kRangesPerThread;
    const std::size_t step = ((n + ranges - 1) / ranges + align - 1) / align * align;
    Job job;
    job.body = &body;
    job.n = n;
    job.step = step;
    job.wanted = threads - 1;
    pool().run(job);
}

}  // namespace fedmq
