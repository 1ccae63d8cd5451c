// C interface of the CPU selective scan. Every array is contiguous, row-major float32 unless it says otherwise.
//
// Symbols: B batch, P tokens in the table, D channels, Dp = D rounded up to AVSSEG_CHANNEL_PADDING, K directions,
// L steps of a direction, N states, R dt rank, Q = ceil(L / checkpoint_interval) chunks.
#ifndef AVSSEG_SELECTIVE_SCAN_H
#define AVSSEG_SELECTIVE_SCAN_H

#include <stdint.h>

#if defined(__GNUC__)
#define AVSSEG_API __attribute__((visibility("default")))
#else
#define AVSSEG_API
#endif

// Raised whenever a struct or a signature below changes; the loader refuses a library of another version.
#define AVSSEG_SCAN_ABI 2
#define AVSSEG_CHANNEL_PADDING 16

#ifdef __cplusplus
extern "C" {
#endif

enum avsseg_capability { AVSSEG_PORTABLE = 0, AVSSEG_AVX2 = 1, AVSSEG_AVX512 = 2 };

enum avsseg_status {
  AVSSEG_OK = 0,
  AVSSEG_PLAN_OUT_OF_RANGE = 1,
  AVSSEG_PLAN_REPEATS = 2,
  AVSSEG_OUT_OF_MEMORY = 3,
  AVSSEG_UNSUPPORTED = 4,
};

typedef struct avsseg_scan {
  int64_t batch;
  int64_t positions;
  int64_t channels;
  int64_t directions;
  int64_t length;
  int64_t states;
  int64_t rank;
  int64_t output_from;          // first position that gets an output
  int64_t checkpoint_interval;  // steps between two saved states
  int64_t threads;
  const float* tokens;      // (B, P, D)
  const float* projected;   // (B, P, K, R + 2N): dt, B, C of each direction, in natural order
  const int64_t* plan;      // (K, L): token of each step, distinct within a direction
  const float* log2_decay;  // (K, N, Dp): A * log2(e), A < 0
  const float* dt_weight;   // (K, R, Dp)
  const float* dt_bias;     // (K, Dp)
  const float* skip;        // (K, Dp)
} avsseg_scan;

AVSSEG_API int avsseg_scan_abi(void);

// The best capability of this processor among those compiled in.
AVSSEG_API int avsseg_scan_capability(void);

AVSSEG_API int avsseg_scan_check_plan(const int64_t* plan, int64_t directions, int64_t length, int64_t positions);

// out (B, P - output_from, D) must hold zeros. checkpoints (B, K, Q, N, D) receives the state before each chunk, or is
// null.
AVSSEG_API int avsseg_scan_forward(const avsseg_scan* scan, int capability, float* out, float* checkpoints);

// grad_out has the shape of out. grad_tokens (B, P, D) and grad_projected, shaped like projected, must hold zeros.
// grad_parameters (K, N + R + 2, Dp) receives the gradients of A, dt_weight, dt_bias and skip, in this order.
AVSSEG_API int avsseg_scan_backward(const avsseg_scan* scan, int capability, const float* checkpoints,
                                    const float* grad_out, float* grad_tokens, float* grad_projected,
                                    float* grad_parameters);

#ifdef __cplusplus
}
#endif

#endif
