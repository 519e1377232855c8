// Which vector instructions are used: chosen once a process, when the program runs.
#ifndef CMB_JAX_INSTRUCTION_SETS_H_
#define CMB_JAX_INSTRUCTION_SETS_H_

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

// Instructions for bfloat16: AVX512-BF16 and AMX. Compilers before GCC 10 and Clang 9 know neither; where the build
// fails otherwise, setup.py leaves them out.
#if defined(__x86_64__) && !defined(CMB_WITHOUT_BFLOAT16) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
#define CMB_WITH_BFLOAT16 1
#endif

#if defined(CMB_WITH_BFLOAT16) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

namespace cmb_jax {

enum class InstructionSet { kNone, kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };  // each has those before it

#if defined(CMB_WITH_BFLOAT16)
inline bool HasAvx512Bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 5 & 1) != 0;
}

// Whether the processor has tiles and Linux lets this process use them: a permission of the process, which all of its
// threads then have, those too that are there already.
inline bool HasAmx() {
#if defined(CMB_AMX_IN_SOFTWARE)
  return true;
#elif defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const bool tiles = (d >> 24 & 1) != 0, bfloat16 = (d >> 22 & 1) != 0;
  constexpr int kRequest = 0x1023 /* ARCH_REQ_XCOMP_PERM */, kTileData = 18;
  return tiles && bfloat16 && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// The best set of this processor, or another one that CMB_JAX_CPU_ISA asks for by name. Intel's processors multiply
// pairs of bfloat16 no faster than single float32 numbers, so that AVX512-BF16 is only their choice if asked for.
inline InstructionSet Chosen() {
  static const InstructionSet chosen = [] {
    const char* wish = std::getenv("CMB_JAX_CPU_ISA");
    const auto wanted = [wish](const char* name) { return !wish || !*wish || std::strcmp(wish, name) == 0; };
#if defined(__x86_64__)
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    const bool narrow = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(CMB_WITH_BFLOAT16)
    const bool short_floats = wide && HasAvx512Bf16();
    if (short_floats && wanted("amx") && HasAmx()) return InstructionSet::kAmx;
    const bool named = wish != nullptr && *wish != 0;
    if (short_floats && wanted("avx512bf16") && (named || __builtin_cpu_is("amd"))) {
      return InstructionSet::kAvx512Bf16;
    }
#endif
    if (wide && wanted("avx512")) return InstructionSet::kAvx512;
    if (narrow && wanted("avx2")) return InstructionSet::kAvx2;
#else
    if (wanted("portable")) return InstructionSet::kPortable;
#endif
    return InstructionSet::kNone;
  }();
  return chosen;
}

inline const char* Name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAmx: return "amx";
    case InstructionSet::kAvx512Bf16: return "avx512bf16";
    case InstructionSet::kAvx512: return "avx512";
    case InstructionSet::kAvx2: return "avx2";
    case InstructionSet::kPortable: return "portable";
    default: return "none";
  }
}

}  // namespace cmb_jax

#endif  // CMB_JAX_INSTRUCTION_SETS_H_
