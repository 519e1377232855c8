// Work sharing on XLA's own intra-op thread pool. The caller takes part, so that no thread only waits, and a
// pool that is busy elsewhere costs time but never blocks.
#ifndef CMB_JAX_PARALLEL_H_
#define CMB_JAX_PARALLEL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace cmb_jax {

// Calls body(i) once for each i in [0, count), on as many threads as are free. Returns when all are done.
// The bodies must write to different places; in which order they run is not fixed. The first exception of a
// body is thrown again here, after all threads have left the work.
inline void ParallelFor(xla::ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> body) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable all_done;
    int64_t done = 0;
    int64_t count = 0;
    std::exception_ptr error;
    std::function<void(int64_t)> body;

    void Work() {
      int64_t mine = 0;
      for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
        try {
          body(i);
        } catch (...) {
          std::lock_guard<std::mutex> lock(mutex);
          if (!error) error = std::current_exception();
        }
        ++mine;
      }
      if (mine > 0) {
        std::lock_guard<std::mutex> lock(mutex);
        done += mine;
        if (done == count) all_done.notify_all();
      }
    }
  };
  if (count <= 0) return;
  // Helpers that the pool starts after the work is done find none; the shared state outlives them.
  auto shared = std::make_shared<Shared>();
  shared->count = count;
  shared->body = std::move(body);
  const int64_t helpers = (pool.num_threads() < count ? pool.num_threads() : count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([shared] { shared->Work(); });
  shared->Work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == shared->count; });
  if (shared->error) std::rethrow_exception(shared->error);
}

}  // namespace cmb_jax

#endif  // CMB_JAX_PARALLEL_H_
