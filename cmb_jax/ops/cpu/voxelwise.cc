// Norm over the channels of each voxel with ReLU, and sums of blocks of voxels, for XLA on CPUs (jax.ffi).
// Channels last, float32. Each reads and writes every number once.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "instruction_sets.h"
#include "parallel.h"
#include "problem.h"

namespace ffi = xla::ffi;

namespace cmb_jax {

// Layer normalization over channels, then scale, bias and, if asked for, ReLU.
struct NormProblem {
  int64_t voxels = 0, channels = 0;
  const float* scale = nullptr;
  const float* bias = nullptr;
  float epsilon = 0;
  bool relu = false;
};

#define LANES 4
namespace narrow {
#include "voxelwise_kernels.inc"
}
#undef LANES

#if defined(__x86_64__)

#define LANES 8
CMB_TARGET_BEGIN("avx2,fma")
namespace avx2 {
#include "voxelwise_kernels.inc"
}
CMB_TARGET_END
#undef LANES

#define LANES 16
CMB_TARGET_BEGIN("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
namespace avx512 {
#include "voxelwise_kernels.inc"
}
CMB_TARGET_END
#undef LANES

#endif

namespace {

constexpr int64_t kLeastVoxels = 512;  // of a task
constexpr int64_t kMostParts = 16;

struct Kernels {
  decltype(&narrow::Norm) norm = narrow::Norm;
  decltype(&narrow::NormGradient) norm_gradient = narrow::NormGradient;
  decltype(&narrow::BlockSumRow) block_sum_row = narrow::BlockSumRow;
};

// The widest kernels that the processor has and that the channels fill.
Kernels For(int64_t channels) {
#if defined(__x86_64__)
  const InstructionSet set = Chosen();
  if (set >= InstructionSet::kAvx512 && channels >= 16) {
    return {avx512::Norm, avx512::NormGradient, avx512::BlockSumRow};
  }
  if (set != InstructionSet::kNone && channels >= 8) return {avx2::Norm, avx2::NormGradient, avx2::BlockSumRow};
#endif
  return {};
}

using Buffer = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

ffi::Error Refuse(const char* what) { return ffi::Error(ffi::ErrorCode::kInvalidArgument, what); }

ffi::Error Check(const Buffer& x, const Buffer& scale, const Buffer& bias, float epsilon, bool relu, NormProblem* p) {
  const auto shape = x.dimensions();
  if (shape.size() == 0) return Refuse("cmb_jax channel_norm: the input needs an axis of channels");
  p->channels = shape.back();
  if (p->channels < 4) return Refuse("cmb_jax channel_norm: 4 channels or more are needed");
  if (static_cast<int64_t>(scale.element_count()) != p->channels ||
      static_cast<int64_t>(bias.element_count()) != p->channels) {
    return Refuse("cmb_jax channel_norm: scale and bias need one number a channel");
  }
  p->voxels = static_cast<int64_t>(x.element_count()) / p->channels;
  p->scale = scale.typed_data();
  p->bias = bias.typed_data();
  p->epsilon = epsilon;
  p->relu = relu;
  return ffi::Error::Success();
}

ffi::Error NormCall(ffi::ThreadPool pool, Buffer x, Buffer scale, Buffer bias, Result y, float epsilon, bool relu) {
  NormProblem p;
  ffi::Error fits = Check(x, scale, bias, epsilon, relu, &p);
  if (fits.failure()) return fits;
  if (y->element_count() != x.element_count()) return Refuse("cmb_jax channel_norm: the output's size differs");
  const Kernels kernels = For(p.channels);
  const int64_t tasks = std::min((p.voxels + kLeastVoxels - 1) / kLeastVoxels, 4 * pool.num_threads());
  ParallelFor(pool, tasks, [&](int64_t task) {
    kernels.norm(p, x.typed_data(), p.voxels * task / tasks, p.voxels * (task + 1) / tasks, y->typed_data());
  });
  return ffi::Error::Success();
}

ffi::Error NormGradientCall(ffi::ThreadPool pool, Buffer x, Buffer g, Buffer scale, Buffer bias, Result towards_x,
                            Result towards_scale, Result towards_bias, float epsilon, bool relu) {
  NormProblem p;
  ffi::Error fits = Check(x, scale, bias, epsilon, relu, &p);
  if (fits.failure()) return fits;
  const int64_t channels = p.channels;
  if (g.element_count() != x.element_count() || towards_x->element_count() != x.element_count() ||
      static_cast<int64_t>(towards_scale->element_count()) != channels ||
      static_cast<int64_t>(towards_bias->element_count()) != channels) {
    return Refuse("cmb_jax channel_norm: the sizes of the gradients do not fit");
  }
  const Kernels kernels = For(channels);
  // Parts are added in order, so that a result depends neither on the number of threads nor on their timing.
  const int64_t parts = std::clamp<int64_t>(p.voxels / kLeastVoxels, 1, kMostParts);
  try {
    std::vector<float> sums(parts * 2 * channels);
    ParallelFor(pool, parts, [&](int64_t part) {
      std::vector<float> own(2 * channels);  // of this thread alone while it is written
      kernels.norm_gradient(p, x.typed_data(), g.typed_data(), p.voxels * part / parts,
                            p.voxels * (part + 1) / parts, towards_x->typed_data(), own.data());
      std::copy(own.begin(), own.end(), sums.begin() + part * 2 * channels);
    });
    for (int64_t i = 0; i < 2 * channels; ++i) {
      float total = 0;
      for (int64_t part = 0; part < parts; ++part) total += sums[part * 2 * channels + i];
      (i < channels ? towards_scale : towards_bias)->typed_data()[i % channels] = total;
    }
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, error.what());
  }
  return ffi::Error::Success();
}

ffi::Error BlockSumCall(ffi::ThreadPool pool, Buffer g, Buffer gate, Result out) {
  const auto in = g.dimensions(), to = out->dimensions();
  if (in.size() != 5 || to.size() != 5) return Refuse("cmb_jax block_sum: arrays need 5 axes");
  for (int axis = 0; axis < 5; ++axis) {
    const bool halved = axis > 0 && axis < 4;
    if (in[axis] != to[axis] * (halved ? 2 : 1)) return Refuse("cmb_jax block_sum: the shapes do not fit each other");
  }
  const bool gated = gate.element_count() > 0;
  if (gated && gate.element_count() != g.element_count()) return Refuse("cmb_jax block_sum: the gate does not fit");
  const int64_t planes = to[0] * to[1], rows = to[2], channels = in[4], row = in[3] * channels, plane = in[2] * row;
  if (out->element_count() == 0) return ffi::Error::Success();
  const Kernels kernels = For(channels);
  try {
    ParallelFor(pool, planes, [&](int64_t task) {
      static thread_local Scratch memory;
      float* line = memory.Get(row);
      for (int64_t y = 0; y < rows; ++y) {
        const int64_t at = 2 * task * plane + 2 * y * row;
        kernels.block_sum_row(g.typed_data() + at, gated ? gate.typed_data() + at : nullptr, plane, row, in[3],
                              channels, line, out->typed_data() + (task * rows + y) * to[3] * channels);
      }
    });
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, error.what());
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cmb_jax

#pragma GCC visibility push(default)  // what Python looks up by name

XLA_FFI_DEFINE_HANDLER_SYMBOL(cmb_jax_channel_norm, cmb_jax::NormCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()  // (..., channels)
                                  .Arg<ffi::Buffer<ffi::F32>>()  // scale
                                  .Arg<ffi::Buffer<ffi::F32>>()  // bias
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("relu"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(cmb_jax_channel_norm_gradient, cmb_jax::NormGradientCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()  // (..., channels)
                                  .Arg<ffi::Buffer<ffi::F32>>()  // gradient towards the output
                                  .Arg<ffi::Buffer<ffi::F32>>()  // scale
                                  .Arg<ffi::Buffer<ffi::F32>>()  // bias
                                  .Ret<ffi::Buffer<ffi::F32>>()  // towards the input
                                  .Ret<ffi::Buffer<ffi::F32>>()  // towards the scale
                                  .Ret<ffi::Buffer<ffi::F32>>()  // towards the bias
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("relu"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(cmb_jax_block_sum, cmb_jax::BlockSumCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()  // gradient towards the repeated voxels
                                  .Arg<ffi::Buffer<ffi::F32>>()  // where it counts: empty, or of the same shape
                                  .Ret<ffi::Buffer<ffi::F32>>());

#pragma GCC visibility pop
