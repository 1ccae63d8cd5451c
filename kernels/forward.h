// Forward scan, see README.md.
#pragma once

#include <stdlib.h>

#include "selective_scan.h"
#include "simd.h"
#include "task.h"

namespace {

// Few steps of many vectors: every step touches one row of tokens and of the output, and a tile reuses those pages.
constexpr int64_t kStepsPerTile = 8;
constexpr int64_t kStepGroup = 4;

// `Count` states of one step of one vector of channels: h = exp2(delta A) h + (delta u) B, and C h added to y if
// `Output`.
template <int64_t Count, bool Output, bool Bounded>
AVSSEG_INLINE Vector advance_states(Vector* h, Vector delta, Vector drive, const float* log2_decay, int64_t stride,
                                    const float* B, const float* C, Vector y) {
  Vector decay[Count];
  decays<Count, Bounded>(delta, log2_decay, stride, decay);
  for (int64_t i = 0; i < Count; i++) {
    h[i] = decay[i] * h[i] + drive * B[i];
    if (Output) y += h[i] * C[i];
  }
  return y;
}

// All states of one step of one vector of channels.
template <int N, bool Output, bool Bounded>
AVSSEG_INLINE Vector advance(Vector* h, int64_t states, Vector delta, Vector drive, const float* log2_decay,
                             int64_t stride, const float* B, const float* C, Vector y) {
  const int64_t count = N > 0 ? N : states;
  int64_t n = 0;
#pragma GCC unroll 16
  for (; n + kExponentials <= count; n += kExponentials) {
    y = advance_states<kExponentials, Output, Bounded>(h + n, delta, drive, log2_decay + n * stride, stride, B + n,
                                                       C + n, y);
  }
  for (; n < count; n++) {
    y = advance_states<1, Output, Bounded>(h + n, delta, drive, log2_decay + n * stride, stride, B + n, C + n, y);
  }
  return y;
}

// delta = softplus(W dt + b) of kStepGroup steps of one vector of channels. The sums and the softplus of one step are
// long chains, so several steps go side by side.
AVSSEG_INLINE void step_sizes(const float* const (&dt)[kStepGroup], int64_t rank, const float* weight, int64_t stride,
                              Vector bias, Vector* delta) {
  Vector x[kStepGroup], unused[kStepGroup];
  for (int64_t i = 0; i < kStepGroup; i++) x[i] = bias;
  for (int64_t r = 0; r < rank; r++) {
    const Vector row = load(weight + r * stride);
    for (int64_t i = 0; i < kStepGroup; i++) x[i] += row * dt[i][r];
  }
  softplus(x, unused);
  for (int64_t i = 0; i < kStepGroup; i++) delta[i] = x[i];
}

// Whether no exponent delta A of these steps is below kLowestExponent; one that is infinite is, one that is NaN may
// count either way.
AVSSEG_INLINE bool bounded(const Vector* delta, int64_t steps, const float* log2_decay, int64_t stride,
                           int64_t states) {
  if (AVSSEG_VECTOR_BYTES == 64) return false;  // it saves nothing there
  Vector steepest = {};
  for (int64_t n = 0; n < states; n++) {
    const Vector rate = load(log2_decay + n * stride);
    steepest = rate < steepest ? rate : steepest;
  }
  IntegerVector fits = delta[0] * steepest > kLowestExponent;
  for (int64_t t = 1; t < steps; t++) fits &= delta[t] * steepest > kLowestExponent;
  return all_of(fits);
}

// Steps [begin, end) of direction k for one vector of channels starting at channel d; `hidden` holds its states.
template <int N>
void forward_tile(const avsseg_scan& s, int64_t b, int64_t k, int64_t d, int64_t begin, int64_t end, Vector* hidden,
                  float* out) {
  const int64_t padded = padded_channels(s), width = projection_width(s), states = N > 0 ? N : s.states;
  const int64_t lanes = lanes_at(s, d);
  const float* log2_decay = s.log2_decay + k * s.states * padded + d;
  const float* dt_weight = s.dt_weight + k * s.rank * padded + d;
  const Vector bias = load(s.dt_bias + k * padded + d), skip = load(s.skip + k * padded + d);
  const float* tokens = s.tokens + b * s.positions * s.channels + d;
  const float* projected = s.projected + b * s.positions * s.directions * width + k * width;
  float* out_rows = out + (b * (s.positions - s.output_from) - s.output_from) * s.channels + d;
  const int64_t* plan = s.plan + k * s.length;

  Vector delta[kStepsPerTile];
  for (int64_t t = 0; t < kStepsPerTile; t += kStepGroup) {
    const float* dt[kStepGroup];
    // A last tile that is not full computes its last step more than once.
    for (int64_t i = 0; i < kStepGroup; i++) {
      dt[i] = projected + plan[begin + t + i < end ? begin + t + i : end - 1] * s.directions * width;
    }
    step_sizes(dt, s.rank, dt_weight, padded, bias, delta + t);
  }
  const bool shallow = bounded(delta, kStepsPerTile, log2_decay, padded, states);
  Vector registers[N > 0 ? N : 1];
  Vector* h = N > 0 ? registers : hidden;
  if (N > 0) {
#pragma GCC unroll 16
    for (int64_t n = 0; n < N; n++) h[n] = hidden[n];
  }
  for (int64_t l = begin; l < end; l++) {
    const int64_t p = plan[l];
    const float *B = projected + p * s.directions * width + s.rank, *C = B + s.states;
    if (l + kStepsPerTile < s.length) {
      const int64_t next = plan[l + kStepsPerTile];
      prefetch(tokens + next * s.channels, kLanes);
      prefetch(out_rows + next * s.channels, kLanes);
      prefetch(projected + next * s.directions * width, width);
    }
    const Vector step = delta[l - begin], u = load(tokens + p * s.channels, lanes), drive = step * u;
    if (p >= s.output_from) {
      float* row = out_rows + p * s.channels;
      const Vector y = shallow ? advance<N, true, true>(h, states, step, drive, log2_decay, padded, B, C, skip * u)
                               : advance<N, true, false>(h, states, step, drive, log2_decay, padded, B, C, skip * u);
      store(row, load(row, lanes) + y, lanes);
    } else {
      advance<N, false, false>(h, states, step, drive, log2_decay, padded, B, C, u);
    }
  }
  if (N > 0) {
#pragma GCC unroll 16
    for (int64_t n = 0; n < N; n++) hidden[n] = h[n];
  }
}

// All directions of one batch element for the channels [first, last).
template <int N>
void forward_task(const avsseg_scan& s, int64_t b, int64_t first, int64_t last, Vector* hidden, float* out,
                  float* checkpoints) {
  const int64_t chunks = chunk_count(s);
  const int64_t vectors = (last - first + kLanes - 1) / kLanes;
  for (int64_t k = 0; k < s.directions; k++) {
    memset(hidden, 0, static_cast<size_t>(vectors * s.states) * sizeof(Vector));
    for (int64_t begin = 0; begin < s.length; begin += kStepsPerTile) {
      const int64_t end = begin + kStepsPerTile < s.length ? begin + kStepsPerTile : s.length;
      for (int64_t v = 0; v < vectors; v++) {
        if (checkpoints && begin % s.checkpoint_interval == 0) {
          const int64_t chunk = (b * s.directions + k) * chunks + begin / s.checkpoint_interval;
          const int64_t d = first + v * kLanes;
          float* saved = checkpoints + chunk * s.states * s.channels + d;
          for (int64_t n = 0; n < s.states; n++)
            store(saved + n * s.channels, hidden[v * s.states + n], lanes_at(s, d));
        }
        forward_tile<N>(s, b, k, first + v * kLanes, begin, end, hidden + v * s.states, out);
      }
    }
  }
}

int forward(const avsseg_scan& s, float* out, float* checkpoints) {
  using Task = void (*)(const avsseg_scan&, int64_t, int64_t, int64_t, Vector*, float*, float*);
  const Task task = s.states == 16  ? forward_task<16>
                    : s.states == 8 ? forward_task<8>
                    : s.states == 4 ? forward_task<4>
                    : s.states == 1 ? forward_task<1>
                                    : forward_task<0>;
  // A tile of 256 channels is the fastest; smaller blocks only if some thread would have nothing to do.
  int64_t block = 256;
  while (block > AVSSEG_CHANNEL_PADDING && s.batch * ((s.channels + block - 1) / block) < s.threads) block /= 2;
  const int64_t blocks = (s.channels + block - 1) / block, hidden_size = block / kLanes * s.states;
  Workspace<Vector> workspace(s.threads, hidden_size);
  if (!workspace.valid()) return AVSSEG_OUT_OF_MEMORY;
#pragma omp parallel num_threads(static_cast<int>(s.threads))
  {
    const FlushDenormals flush;
    Vector* hidden = workspace.of(thread_number());
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t b = 0; b < s.batch; b++) {
      for (int64_t i = 0; i < blocks; i++) {
        const int64_t last = (i + 1) * block < s.channels ? (i + 1) * block : s.channels;
        task(s, b, i * block, last, hidden, out, checkpoints);
      }
    }
  }
  return AVSSEG_OK;
}

}  // namespace
