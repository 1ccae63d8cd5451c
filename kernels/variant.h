// The scan for one instruction set: variant.cpp is compiled once for each.
#pragma once

#include "selective_scan.h"

struct ScanVariant {
  int (*forward)(const avsseg_scan& scan, float* out, float* checkpoints);
  int (*backward)(const avsseg_scan& scan, const float* checkpoints, const float* grad_out, float* grad_tokens,
                  float* grad_projected, float* grad_parameters);
};

extern const ScanVariant kPortableScan;
#if defined(AVSSEG_X86)
extern const ScanVariant kAvx2Scan;
extern const ScanVariant kAvx512Scan;
#endif
