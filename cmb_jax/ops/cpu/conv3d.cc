// 3-D convolution for CPUs, called by XLA (jax.ffi): NDHWC images, DHWIO kernels, float32, "SAME" padding, kernel
// edges 1 or 3, any strides and channels. The instruction set is chosen when the program runs.
#include <cstring>
#include <exception>
#include <utility>

#include "parallel.h"
#include "problem.h"

namespace ffi = xla::ffi;

namespace cmb_jax {

constexpr int64_t kWindowFloats = 64 * 1024;  // of the window of input rows: half of a small second-level cache
constexpr int64_t kLineFloats = 6 * 1024;     // of what the kernel gradient streams: most of a first-level cache

// Functions compiled between these two may use instructions that are checked for before they are called.
#if defined(__clang__)
#define CMB_TARGET_BEGIN_(text) _Pragma(#text)
#define CMB_TARGET_BEGIN(set) \
  CMB_TARGET_BEGIN_(clang attribute push(__attribute__((target(set))), apply_to = function))
#define CMB_TARGET_END _Pragma("clang attribute pop")
#else
#define CMB_TARGET_BEGIN_(text) _Pragma(#text)
#define CMB_TARGET_BEGIN(set) _Pragma("GCC push_options") CMB_TARGET_BEGIN_(GCC target(set))
#define CMB_TARGET_END _Pragma("GCC pop_options")
#endif

#if defined(__x86_64__)

#define LANES 8
#define REGISTERS 12
CMB_TARGET_BEGIN("avx2,fma")
namespace avx2 {
#include "conv3d_kernels.inc"
}
CMB_TARGET_END
#undef LANES
#undef REGISTERS

#define LANES 16
#define REGISTERS 24
CMB_TARGET_BEGIN("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
namespace avx512 {
#include "conv3d_kernels.inc"
}
CMB_TARGET_END
#undef LANES
#undef REGISTERS

#else

#define LANES 4
#define REGISTERS 24
namespace portable {
#include "conv3d_kernels.inc"
}
#undef LANES
#undef REGISTERS

#endif

namespace {

using ForwardKernel = void (*)(ffi::ThreadPool&, const Problem&, const float*, const float*, bool, float*);
using GradientKernel = void (*)(ffi::ThreadPool&, const Problem&, const float*, const float*, float*);

struct Kernels {
  const char* name = "none";
  int lanes = 0;
  ForwardKernel forward = nullptr;
  GradientKernel gradient = nullptr;
};

// The widest set of this processor, or a narrower one that is asked for by name.
Kernels Select(const char* wish) {
  const bool any = wish == nullptr || *wish == '\0';
#if defined(__x86_64__)
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (wide && (any || std::strcmp(wish, "avx512") == 0)) return {"avx512", 16, avx512::Forward, avx512::KernelGradient};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (any || std::strcmp(wish, "avx2") == 0)) {
    return {"avx2", 8, avx2::Forward, avx2::KernelGradient};
  }
#else
  if (any || std::strcmp(wish, "portable") == 0) return {"portable", 4, portable::Forward, portable::KernelGradient};
#endif
  return {};
}

const Kernels& Chosen() {
  static const Kernels kernels = Select(std::getenv("CMB_JAX_CPU_ISA"));
  return kernels;
}

using Buffer = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;
using Dimensions = ffi::Span<const int64_t>;

ffi::Error Refuse(const char* what) { return ffi::Error(ffi::ErrorCode::kInvalidArgument, what); }

// The problem of an input, a kernel (kz, ky, kx, inputs, outputs) and an output; an error if they do not fit.
ffi::Error Check(Dimensions x, Dimensions kernel, Dimensions y, Dimensions strides, bool mirrored, Problem* p) {
  if (Chosen().forward == nullptr) return Refuse("cmb_jax conv3d: this processor lacks AVX2");
  if (x.size() != 5 || kernel.size() != 5 || y.size() != 5) return Refuse("cmb_jax conv3d: arrays need 5 axes");
  if (strides.size() != 3) return Refuse("cmb_jax conv3d: three strides are needed");
  for (int axis = 0; axis < 3; ++axis) {
    if (kernel[axis] != 1 && kernel[axis] != 3) return Refuse("cmb_jax conv3d: kernel edges must be 1 or 3");
    if (strides[axis] < 1) return Refuse("cmb_jax conv3d: strides must be positive");
    if (mirrored && strides[axis] != 1) return Refuse("cmb_jax conv3d: a mirrored kernel needs strides of 1");
  }
  p->batch = x[0];
  p->inputs = kernel[mirrored ? 4 : 3];
  p->outputs = kernel[mirrored ? 3 : 4];
  p->z = Axis(x[1], kernel[0], strides[0]);
  p->y = Axis(x[2], kernel[1], strides[1]);
  p->x = Axis(x[3], kernel[2], strides[2]);
  if (x[4] != p->inputs || y[4] != p->outputs || y[0] != p->batch || y[1] != p->z.output || y[2] != p->y.output ||
      y[3] != p->x.output) {
    return Refuse("cmb_jax conv3d: the shapes do not fit each other");
  }
  // A block table holds 64 blocks of at least 4 lanes.
  if (p->outputs > 64 * 3 * Chosen().lanes) return Refuse("cmb_jax conv3d: too many output channels");
  return ffi::Error::Success();
}

bool Empty(const Problem& p) { return p.batch == 0 || p.z.output == 0 || p.y.output == 0 || p.x.output == 0; }

ffi::Error ForwardCall(ffi::ThreadPool pool, Buffer x, Buffer kernel, Result y, Dimensions strides, bool mirrored) {
  Problem p;
  ffi::Error fits = Check(x.dimensions(), kernel.dimensions(), y->dimensions(), strides, mirrored, &p);
  if (fits.failure()) return fits;
  if (Empty(p) || p.outputs == 0) return ffi::Error::Success();
  try {
    Chosen().forward(pool, p, x.typed_data(), kernel.typed_data(), mirrored, y->typed_data());
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, error.what());
  }
  return ffi::Error::Success();
}

ffi::Error GradientCall(ffi::ThreadPool pool, Buffer x, Buffer g, Result kernel, Dimensions strides) {
  Problem p;
  ffi::Error fits = Check(x.dimensions(), kernel->dimensions(), g.dimensions(), strides, false, &p);
  if (fits.failure()) return fits;
  if (p.KernelSize() == 0) return ffi::Error::Success();
  if (Empty(p)) {
    std::memset(kernel->typed_data(), 0, p.KernelSize() * sizeof(float));
    return ffi::Error::Success();
  }
  try {
    Chosen().gradient(pool, p, x.typed_data(), g.typed_data(), kernel->typed_data());
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, error.what());
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cmb_jax

#pragma GCC visibility push(default)  // what Python looks up by name

XLA_FFI_DEFINE_HANDLER_SYMBOL(cmb_jax_conv3d, cmb_jax::ForwardCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()  // image
                                  .Arg<ffi::Buffer<ffi::F32>>()  // kernel
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<ffi::Span<const int64_t>>("strides")
                                  .Attr<bool>("mirrored"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(cmb_jax_conv3d_kernel_gradient, cmb_jax::GradientCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()  // image
                                  .Arg<ffi::Buffer<ffi::F32>>()  // gradient towards the output
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<ffi::Span<const int64_t>>("strides"));

// The instruction set in use: "avx512", "avx2", "portable", or "none" where there is no kernel for the processor.
extern "C" const char* cmb_jax_instruction_set() { return cmb_jax::Chosen().name; }

#pragma GCC visibility pop
