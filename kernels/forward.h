// Forward scan, see README.md.
#pragma once

#include <stdlib.h>

#include "selective_scan.h"
#include "simd.h"
#include "task.h"

namespace {

// Few steps of many vectors: every step touches one row of tokens and of the output, and a tile reuses those pages.
constexpr int64_t kStepsPerTile = 8;

// One step of one vector of channels: h = exp2(delta A) h + (delta u) B, and C h added to y if `Output`.
template <int N, bool Output>
AVSSEG_INLINE Vector advance(Vector* h, int64_t states, Vector delta, Vector drive, const float* log2_decay,
                             int64_t stride, const float* B, const float* C, Vector y) {
  const int64_t count = N > 0 ? N : states;
#pragma GCC unroll 16
  for (int64_t n = 0; n < count; n++) {
    h[n] = exp2_nonpositive(delta * load(log2_decay + n * stride)) * h[n] + drive * B[n];
    if (Output) y += h[n] * C[n];
  }
  return y;
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

  Vector registers[N > 0 ? N : 1];
  Vector* h = N > 0 ? registers : hidden;
  if (N > 0) {
#pragma GCC unroll 16
    for (int64_t n = 0; n < N; n++) h[n] = hidden[n];
  }
  for (int64_t l = begin; l < end; l++) {
    const int64_t p = plan[l];
    const float *dt = projected + p * s.directions * width, *B = dt + s.rank, *C = B + s.states;
    if (l + kStepsPerTile < s.length) {
      const int64_t next = plan[l + kStepsPerTile];
      prefetch(tokens + next * s.channels, kLanes);
      prefetch(out_rows + next * s.channels, kLanes);
      prefetch(projected + next * s.directions * width, width);
    }
    Vector x = bias;
    for (int64_t r = 0; r < s.rank; r++) x += load(dt_weight + r * padded) * dt[r];
    const Vector delta = softplus(x).value, u = load(tokens + p * s.channels, lanes), drive = delta * u;
    if (p >= s.output_from) {
      float* row = out_rows + p * s.channels;
      const Vector y = advance<N, true>(h, states, delta, drive, log2_decay, padded, B, C, skip * u);
      store(row, load(row, lanes) + y, lanes);
    } else {
      advance<N, false>(h, states, delta, drive, log2_decay, padded, B, C, u);
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
