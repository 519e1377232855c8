// Sizes of one convolution and the memory that its kernels work in; nothing here depends on the processor.
#ifndef CMB_JAX_PROBLEM_H_
#define CMB_JAX_PROBLEM_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace cmb_jax {

// One axis of a "SAME" convolution: output o looks at inputs o * stride - before + [0, kernel).
struct Axis {
  int64_t input = 0, output = 0, kernel = 1, stride = 1, before = 0;

  Axis() = default;
  Axis(int64_t input_size, int64_t kernel_size, int64_t step)
      : input(input_size), output((input_size + step - 1) / step), kernel(kernel_size), stride(step) {
    const int64_t padding = (output - 1) * stride + kernel - input;
    before = padding > 0 ? padding / 2 : 0;
  }
  int64_t First(int64_t out) const { return out * stride - before; }
  // Inputs that `count` neighboring outputs look at.
  int64_t Span(int64_t count) const { return (count - 1) * stride + kernel; }
};

// x (batch, z.input, y.input, x.input, inputs) * kernel (z, y, x, inputs, outputs).
struct Problem {
  int64_t batch = 0, inputs = 0, outputs = 0;
  Axis z, y, x;
  bool rounded = false;  // both factors of each product are rounded to bfloat16; sums are float32 either way

  int64_t Inner() const { return x.kernel * inputs; }  // contiguous inputs of one output along a row
  int64_t Taps() const { return z.kernel * y.kernel; }  // rows that one output looks at
  int64_t KernelSize() const { return Taps() * Inner() * outputs; }
};

// What is added to each output before the sum, and what is done after it.
struct Finish {
  const float* bias = nullptr;    // (outputs), or null
  const float* coarse = nullptr;  // (batch, z / 2, y / 2, x / 2, outputs), each repeated for 2 x 2 x 2 voxels, or null
  bool relu = false;
};

// Aligned memory that grows and is kept for the next call of the same thread.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  float* Get(int64_t count) {
    if (count > size_) {
      std::free(data_);
      size_ = 0;
      const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
      data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = count;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

// Memory of the next plane, asked for bit by bit while this one is multiplied.
class Ahead {
 public:
  // `count` numbers from `from` on (none if null), in `turns` calls of Some.
  Ahead(const float* from, int64_t count, int64_t turns)
      : at_(reinterpret_cast<const char*>(from)),
        left_(from == nullptr ? 0 : count * static_cast<int64_t>(sizeof(float)) / 64),
        each_(left_ / std::max<int64_t>(1, turns) + 1) {}
  void Some() {
    for (int64_t i = std::min(each_, left_); i > 0; --i, --left_, at_ += 64) __builtin_prefetch(at_, 0, 2);
  }

 private:
  const char* at_;
  int64_t left_, each_;
};

// Output rows that share one window of input rows, so that the window stays in the second-level cache.
inline int64_t RowsPerChunk(const Problem& p, int64_t floats_a_row, int64_t planes, int64_t budget) {
  const int64_t fit = budget / std::max<int64_t>(1, planes * p.y.stride * floats_a_row) - p.y.kernel;
  return std::clamp<int64_t>(fit, std::min<int64_t>(4, p.y.output), p.y.output);
}

}  // namespace cmb_jax

#endif  // CMB_JAX_PROBLEM_H_
