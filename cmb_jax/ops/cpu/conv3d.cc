// 3-D convolution for CPUs, called by XLA (jax.ffi): NDHWC images, DHWIO kernels, float32, "SAME" padding, kernel
// edges 1 or 3, any strides and channels. The instruction set is chosen when the program runs.
#include <atomic>
#include <cstring>
#include <exception>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "instruction_sets.h"
#include "parallel.h"
#include "problem.h"

namespace ffi = xla::ffi;

namespace cmb_jax {

constexpr int64_t kWindowFloats = 64 * 1024;  // of the window of input rows: half of a small second-level cache
constexpr int64_t kLineFloats = 6 * 1024;     // of what the kernel gradient streams: most of a first-level cache
constexpr int64_t kPairWindowFloats = 128 * 1024;  // the same for bfloat16: such processors have a larger cache

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

#if defined(CMB_WITH_BFLOAT16)
CMB_TARGET_BEGIN("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
namespace avx512bf16 {
#include "conv3d_bfloat16.inc"
}
namespace amx {
#include "conv3d_amx.inc"
}
CMB_TARGET_END
#endif
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

struct Kernels {
  int lanes = 0;  // of a register
#if defined(__x86_64__)
  decltype(&avx2::Forward) forward = nullptr;
  decltype(&avx2::KernelGradient) gradient = nullptr;
#else
  decltype(&portable::Forward) forward = nullptr;
  decltype(&portable::KernelGradient) gradient = nullptr;
#endif
};

// `rounded`: products of bfloat16. Sets without instructions for them round the numbers and multiply them as float32.
Kernels Select(bool rounded) {
  switch (Chosen()) {
#if defined(__x86_64__)
#if defined(CMB_WITH_BFLOAT16)
    case InstructionSet::kAmx:
      if (rounded) return {16, amx::Forward, amx::KernelGradient};
      return {16, avx512::Forward, avx512::KernelGradient};
    case InstructionSet::kAvx512Bf16:
      if (rounded) return {16, avx512bf16::Forward, avx512bf16::KernelGradient};
      return {16, avx512::Forward, avx512::KernelGradient};
#endif
    case InstructionSet::kAvx512: return {16, avx512::Forward, avx512::KernelGradient};
    case InstructionSet::kAvx2: return {8, avx2::Forward, avx2::KernelGradient};
#else
    case InstructionSet::kPortable: return {4, portable::Forward, portable::KernelGradient};
#endif
    default: return {};
  }
}

using Buffer = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;
using Dimensions = ffi::Span<const int64_t>;

ffi::Error Refuse(const char* what) { return ffi::Error(ffi::ErrorCode::kInvalidArgument, what); }

// The problem of an input, a kernel (kz, ky, kx, inputs, outputs) and an output; an error if they do not fit.
ffi::Error Check(const Kernels& kernels, Dimensions x, Dimensions kernel, Dimensions y, Dimensions strides,
                 bool mirrored, Problem* p) {
  if (kernels.forward == nullptr) return Refuse("cmb_jax conv3d: this processor lacks AVX2");
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
  if (p->outputs > 64 * 3 * kernels.lanes) return Refuse("cmb_jax conv3d: too many output channels");
  return ffi::Error::Success();
}

bool Empty(const Problem& p) { return p.batch == 0 || p.z.output == 0 || p.y.output == 0 || p.x.output == 0; }

// An argument that may be left out, as an array without elements; null then.
const float* Optional(const Buffer& buffer) { return buffer.element_count() == 0 ? nullptr : buffer.typed_data(); }

bool Fits(const Buffer& buffer, int64_t count) {
  return buffer.element_count() == 0 || static_cast<int64_t>(buffer.element_count()) == count;
}

ffi::Error ForwardCall(ffi::ThreadPool pool, Buffer x, Buffer gate, Buffer kernel, Buffer bias, Buffer coarse, Result y,
                       Dimensions strides, bool mirrored, bool relu, bool rounded) {
  const Kernels kernels = Select(rounded);
  Problem p;
  p.rounded = rounded;
  ffi::Error fits = Check(kernels, x.dimensions(), kernel.dimensions(), y->dimensions(), strides, mirrored, &p);
  if (fits.failure()) return fits;
  if (Empty(p) || p.outputs == 0) return ffi::Error::Success();
  if (!Fits(gate, static_cast<int64_t>(x.element_count()))) return Refuse("cmb_jax conv3d: the gate does not fit");
  if (!Fits(bias, p.outputs)) return Refuse("cmb_jax conv3d: the bias does not fit");
  const bool even = p.z.output % 2 == 0 && p.y.output % 2 == 0 && p.x.output % 2 == 0;
  if (coarse.element_count() != 0 && (!even || coarse.element_count() * 8 != y->element_count())) {
    return Refuse("cmb_jax conv3d: the coarse image does not fit");
  }
  const Finish finish = {Optional(bias), Optional(coarse), relu};
  try {
    kernels.forward(pool, p, x.typed_data(), Optional(gate), kernel.typed_data(), mirrored, finish, y->typed_data());
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, error.what());
  }
  return ffi::Error::Success();
}

ffi::Error GradientCall(ffi::ThreadPool pool, Buffer x, Buffer g, Buffer gate, Result kernel, Result bias,
                        Dimensions strides, bool rounded) {
  const Kernels kernels = Select(rounded);
  Problem p;
  p.rounded = rounded;
  ffi::Error fits = Check(kernels, x.dimensions(), kernel->dimensions(), g.dimensions(), strides, false, &p);
  if (fits.failure()) return fits;
  if (!Fits(gate, static_cast<int64_t>(g.element_count()))) return Refuse("cmb_jax conv3d: the gate does not fit");
  if (static_cast<int64_t>(bias->element_count()) != p.outputs) return Refuse("cmb_jax conv3d: the bias does not fit");
  if (p.KernelSize() == 0 || Empty(p)) {
    if (p.KernelSize() > 0) std::memset(kernel->typed_data(), 0, p.KernelSize() * sizeof(float));
    if (p.outputs > 0) std::memset(bias->typed_data(), 0, p.outputs * sizeof(float));
    return ffi::Error::Success();
  }
  try {
    kernels.gradient(pool, p, x.typed_data(), g.typed_data(), Optional(gate), kernel->typed_data(),
                     bias->typed_data());
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, error.what());
  }
  return ffi::Error::Success();
}

ffi::Error PointwiseGradientCall(ffi::ThreadPool pool, Buffer x, Buffer g, Buffer gate, Buffer kernel, Result x_out,
                                 Result kernel_out, Result bias_out, Result coarse_out) {
#if defined(__x86_64__) && defined(CMB_WITH_BFLOAT16)
  if (Chosen() != InstructionSet::kAmx && Chosen() != InstructionSet::kAvx512Bf16) {
    return Refuse("cmb_jax pointwise gradient: this processor has no instructions for it");
  }
  Problem p;
  p.rounded = true;
  static constexpr int64_t kOnes[3] = {1, 1, 1};
  ffi::Error fits = Check(Select(true), x.dimensions(), kernel.dimensions(), g.dimensions(), {kOnes, 3}, false, &p);
  if (fits.failure()) return fits;
  const bool even = p.z.output % 2 == 0 && p.y.output % 2 == 0 && p.x.output % 2 == 0;
  if (p.Taps() * p.x.kernel != 1 || p.inputs > 64 * 3 * 16 || !Fits(gate, static_cast<int64_t>(g.element_count())) ||
      x_out->element_count() != x.element_count() || kernel_out->element_count() != kernel.element_count() ||
      static_cast<int64_t>(bias_out->element_count()) != p.outputs ||
      (coarse_out->element_count() != 0 && (!even || coarse_out->element_count() * 8 != g.element_count())) ||
      p.KernelSize() == 0 || Empty(p)) {
    return Refuse("cmb_jax pointwise gradient: the shapes do not fit each other");
  }
  float* coarse = coarse_out->element_count() == 0 ? nullptr : coarse_out->typed_data();
  try {
    avx512bf16::PointwiseGradient(pool, p, x.typed_data(), g.typed_data(), Optional(gate), kernel.typed_data(),
                                  x_out->typed_data(), kernel_out->typed_data(), bias_out->typed_data(), coarse);
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, error.what());
  }
  return ffi::Error::Success();
#else
  return Refuse("cmb_jax pointwise gradient: not built for this processor");
#endif
}

}  // namespace
}  // namespace cmb_jax

#pragma GCC visibility push(default)  // what Python looks up by name

XLA_FFI_DEFINE_HANDLER_SYMBOL(cmb_jax_conv3d, cmb_jax::ForwardCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()  // image
                                  .Arg<ffi::Buffer<ffi::F32>>()  // where it counts: empty, or of its shape
                                  .Arg<ffi::Buffer<ffi::F32>>()  // kernel
                                  .Arg<ffi::Buffer<ffi::F32>>()  // bias: empty, or one number an output
                                  .Arg<ffi::Buffer<ffi::F32>>()  // coarse image to repeat and add, or empty
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<ffi::Span<const int64_t>>("strides")
                                  .Attr<bool>("mirrored")
                                  .Attr<bool>("relu")
                                  .Attr<bool>("rounded"));  // products of bfloat16

XLA_FFI_DEFINE_HANDLER_SYMBOL(cmb_jax_conv3d_kernel_gradient, cmb_jax::GradientCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()  // image
                                  .Arg<ffi::Buffer<ffi::F32>>()  // gradient towards the output
                                  .Arg<ffi::Buffer<ffi::F32>>()  // where it counts: empty, or of its shape
                                  .Ret<ffi::Buffer<ffi::F32>>()  // towards the kernel
                                  .Ret<ffi::Buffer<ffi::F32>>()  // towards the bias
                                  .Attr<ffi::Span<const int64_t>>("strides")
                                  .Attr<bool>("rounded"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(cmb_jax_pointwise_gradient, cmb_jax::PointwiseGradientCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()  // image
                                  .Arg<ffi::Buffer<ffi::F32>>()  // gradient towards the output
                                  .Arg<ffi::Buffer<ffi::F32>>()  // where it counts: empty, or of its shape
                                  .Arg<ffi::Buffer<ffi::F32>>()  // kernel, 1 x 1 x 1
                                  .Ret<ffi::Buffer<ffi::F32>>()  // towards the image
                                  .Ret<ffi::Buffer<ffi::F32>>()  // towards the kernel
                                  .Ret<ffi::Buffer<ffi::F32>>()  // towards the bias
                                  .Ret<ffi::Buffer<ffi::F32>>());  // towards the coarse image, or empty

// The instruction set in use, "none" where there is no kernel for the processor.
extern "C" const char* cmb_jax_instruction_set() { return cmb_jax::Name(cmb_jax::Chosen()); }

#pragma GCC visibility pop
