// The C interface: checks that are shared by all instruction sets, and the choice between them at run time.
#include <cstddef>
#include <new>
#include <vector>

#include "selective_scan.h"
#include "variant.h"

namespace {

const ScanVariant* variant(int capability) {
  if (capability < AVSSEG_PORTABLE || capability > avsseg_scan_capability()) return nullptr;
#if defined(AVSSEG_X86)
  if (capability == AVSSEG_AVX512) return &kAvx512Scan;
  if (capability == AVSSEG_AVX2) return &kAvx2Scan;
#endif
  return &kPortableScan;
}

}  // namespace

extern "C" {

int avsseg_scan_abi(void) { return AVSSEG_SCAN_ABI; }

int avsseg_scan_capability(void) {
#if defined(AVSSEG_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return AVSSEG_AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVSSEG_AVX2;
#endif
  return AVSSEG_PORTABLE;
}

int avsseg_scan_check_plan(const int64_t* plan, int64_t directions, int64_t length, int64_t positions) {
  try {
    std::vector<int64_t> last_visit(static_cast<size_t>(positions), -1);
    for (int64_t k = 0; k < directions; k++) {
      for (int64_t l = 0; l < length; l++) {
        const int64_t p = plan[k * length + l];
        if (p < 0 || p >= positions) return AVSSEG_PLAN_OUT_OF_RANGE;
        if (last_visit[static_cast<size_t>(p)] == k) return AVSSEG_PLAN_REPEATS;
        last_visit[static_cast<size_t>(p)] = k;
      }
    }
  } catch (const std::bad_alloc&) {
    return AVSSEG_OUT_OF_MEMORY;
  }
  return AVSSEG_OK;
}

int avsseg_scan_forward(const avsseg_scan* scan, int capability, float* out, float* checkpoints) {
  const ScanVariant* chosen = variant(capability);
  return chosen ? chosen->forward(*scan, out, checkpoints) : AVSSEG_UNSUPPORTED;
}

int avsseg_scan_backward(const avsseg_scan* scan, int capability, const float* checkpoints, const float* grad_out,
                         float* grad_tokens, float* grad_projected, float* grad_parameters) {
  const ScanVariant* chosen = variant(capability);
  if (!chosen) return AVSSEG_UNSUPPORTED;
  return chosen->backward(*scan, checkpoints, grad_out, grad_tokens, grad_projected, grad_parameters);
}

}  // extern "C"
