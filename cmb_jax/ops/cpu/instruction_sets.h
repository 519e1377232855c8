// Which vector instructions are used: chosen once a process, when the program runs.
#ifndef CMB_JAX_INSTRUCTION_SETS_H_
#define CMB_JAX_INSTRUCTION_SETS_H_

#include <cstdlib>
#include <cstring>

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

enum class InstructionSet { kNone, kPortable, kAvx2, kAvx512 };

// The widest set of this processor, or a narrower one that CMB_JAX_CPU_ISA asks for by name.
inline InstructionSet Chosen() {
  static const InstructionSet chosen = [] {
    const char* wish = std::getenv("CMB_JAX_CPU_ISA");
    const auto wanted = [wish](const char* name) { return !wish || !*wish || std::strcmp(wish, name) == 0; };
#if defined(__x86_64__)
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    const bool narrow = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
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
    case InstructionSet::kAvx512: return "avx512";
    case InstructionSet::kAvx2: return "avx2";
    case InstructionSet::kPortable: return "portable";
    default: return "none";
  }
}

}  // namespace cmb_jax

#endif  // CMB_JAX_INSTRUCTION_SETS_H_
