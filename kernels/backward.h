// Backward scan, see README.md: chunk by chunk from the end, the states of a chunk recomputed from its checkpoint.
#pragma once

#include "selective_scan.h"
#include "simd.h"
#include "task.h"

namespace {

// Vectors of channels, states and ranks that are worked on together, so that their sums stay in registers.
constexpr int64_t kVectorGroup = 2;
constexpr int64_t kStateGroup = 4;
constexpr int64_t kRankGroup = 4;

constexpr int64_t kPrefetchDistance = 8;

// Blocks of channels are whole groups of the widest vectors; more blocks than it takes for this many tasks only cost
// time.
constexpr int64_t kBlockUnit = 2 * AVSSEG_CHANNEL_PADDING;
constexpr int64_t kTasks = 8;

// What one thread needs, for chunks of T steps and blocks of V vectors.
struct BackwardBuffers {
  Vector *delta, *sigmoid, *drive, *grad_out, *grad_drive, *grad_delta;  // (T, kVectorGroup)
  Vector *decay, *hidden;                                                // (T, kStateGroup, kVectorGroup)
  Vector* grad_rows;                                                     // (T, R + 2N), summed over the block's vectors
  Vector* grad_hidden;                                                   // (V, N)

  static int64_t size(const avsseg_scan& s, int64_t vectors) {
    return s.checkpoint_interval * ((6 + 2 * kStateGroup) * kVectorGroup + projection_width(s)) + vectors * s.states;
  }

  BackwardBuffers(const avsseg_scan& s, Vector* memory) {
    const int64_t steps = s.checkpoint_interval, field = steps * kVectorGroup;
    delta = memory;
    sigmoid = delta + field;
    drive = sigmoid + field;
    grad_out = drive + field;
    grad_drive = grad_out + field;
    grad_delta = grad_drive + field;
    decay = grad_delta + field;
    hidden = decay + steps * kStateGroup * kVectorGroup;
    grad_rows = hidden + steps * kStateGroup * kVectorGroup;
    grad_hidden = grad_rows + steps * projection_width(s);
  }
};

// One chunk of one direction of one batch element.
struct Chunk {
  const avsseg_scan& s;
  int64_t batch, direction, index, begin, steps;

  Chunk(const avsseg_scan& scan, int64_t b, int64_t k, int64_t q)
      : s(scan),
        batch(b),
        direction(k),
        index(q),
        begin(q * scan.checkpoint_interval),
        steps(begin + scan.checkpoint_interval < scan.length ? scan.checkpoint_interval : scan.length - begin) {}

  int64_t position(int64_t t) const { return s.plan[direction * s.length + begin + t]; }
  const float* projected(int64_t t) const {
    return s.projected + ((batch * s.positions + position(t)) * s.directions + direction) * projection_width(s);
  }
};

// Recomputes the states n .. n + States of `Vectors` vectors, then walks back through them.
template <int States, int Vectors>
void backward_states(const Chunk& c, int64_t d, const int64_t* lanes, int64_t n, const float* checkpoint,
                     BackwardBuffers& w, Vector* grad_hidden, float* grad_A) {
  const avsseg_scan& s = c.s;
  const int64_t padded = padded_channels(s), width = projection_width(s);
  const float* log2_decay = s.log2_decay + (c.direction * s.states + n) * padded + d;
  Vector h[States][Vectors], grad_h[States][Vectors], grad_rate[States][Vectors];
  for (int i = 0; i < States; i++) {
    for (int v = 0; v < Vectors; v++) h[i][v] = load(checkpoint + (n + i) * s.channels + v * kLanes, lanes[v]);
  }
  for (int64_t t = 0; t < c.steps; t++) {
    const float* B = c.projected(t) + s.rank + n;
    for (int v = 0; v < Vectors; v++) {
      Vector decay[States];
      decays<States, false>(w.delta[t * Vectors + v], log2_decay + v * kLanes, padded, decay);
      for (int i = 0; i < States; i++) {
        const int64_t at = (t * States + i) * Vectors + v;
        w.decay[at] = decay[i];
        w.hidden[at] = h[i][v];
        h[i][v] = decay[i] * h[i][v] + w.drive[t * Vectors + v] * B[i];
      }
    }
  }
  for (int i = 0; i < States; i++) {
    for (int v = 0; v < Vectors; v++) {
      grad_h[i][v] = grad_hidden[v * s.states + n + i];
      grad_rate[i][v] = Vector{};
    }
  }
  for (int64_t t = c.steps - 1; t >= 0; t--) {
    const float *B = c.projected(t) + s.rank + n, *C = B + s.states;
    Vector *grad_B = w.grad_rows + t * width + s.rank + n, *grad_C = grad_B + s.states;
    Vector grad_drive[Vectors], grad_delta[Vectors], grad_out[Vectors], delta[Vectors], drive[Vectors];
    for (int v = 0; v < Vectors; v++) {
      grad_drive[v] = w.grad_drive[t * Vectors + v];
      grad_delta[v] = w.grad_delta[t * Vectors + v];
      grad_out[v] = w.grad_out[t * Vectors + v];
      delta[v] = w.delta[t * Vectors + v];
      drive[v] = w.drive[t * Vectors + v];
    }
    for (int i = 0; i < States; i++) {
      Vector sum_B = grad_B[i], sum_C = grad_C[i];
      for (int v = 0; v < Vectors; v++) {
        const int64_t at = (t * States + i) * Vectors + v;
        const Vector before = w.hidden[at];
        const Vector g = grad_h[i][v] + grad_out[v] * C[i];
        sum_C += grad_out[v] * h[i][v];
        sum_B += drive[v] * g;
        grad_drive[v] += g * B[i];
        grad_h[i][v] = g * w.decay[at];
        const Vector grad_exponent = grad_h[i][v] * before;
        grad_delta[v] += grad_exponent * load(log2_decay + i * padded + v * kLanes);
        grad_rate[i][v] += grad_exponent * delta[v];
        h[i][v] = before;
      }
      grad_B[i] = sum_B;
      grad_C[i] = sum_C;
    }
    for (int v = 0; v < Vectors; v++) {
      w.grad_drive[t * Vectors + v] = grad_drive[v];
      w.grad_delta[t * Vectors + v] = grad_delta[v];
    }
  }
  for (int i = 0; i < States; i++) {
    for (int v = 0; v < Vectors; v++) {
      grad_hidden[v * s.states + n + i] = grad_h[i][v];
      float* rate = grad_A + (n + i) * padded + v * kLanes;
      store(rate, load(rate) + grad_rate[i][v]);
    }
  }
}

// The gradients of dt and of the ranks r .. r + Ranks of dt_weight; grad_delta holds the gradient before softplus by
// now.
template <int Ranks, int Vectors>
void backward_ranks(const Chunk& c, int64_t d, int64_t r, BackwardBuffers& w, float* grad_parameters) {
  const avsseg_scan& s = c.s;
  const int64_t padded = padded_channels(s), width = projection_width(s);
  const float* weight_rows = s.dt_weight + (c.direction * s.rank + r) * padded + d;
  float* grad_weight_rows = grad_parameters + (s.states + r) * padded;
  Vector weight[Ranks][Vectors], grad_weight[Ranks][Vectors];
  for (int i = 0; i < Ranks; i++) {
    for (int v = 0; v < Vectors; v++) {
      weight[i][v] = load(weight_rows + i * padded + v * kLanes);
      grad_weight[i][v] = load(grad_weight_rows + i * padded + v * kLanes);
    }
  }
  for (int64_t t = 0; t < c.steps; t++) {
    const float* dt = c.projected(t) + r;
    Vector* grad_dt = w.grad_rows + t * width + r;
    for (int i = 0; i < Ranks; i++) {
      Vector sum = grad_dt[i];
      for (int v = 0; v < Vectors; v++) {
        const Vector grad_x = w.grad_delta[t * Vectors + v];
        grad_weight[i][v] += grad_x * dt[i];
        sum += grad_x * weight[i][v];
      }
      grad_dt[i] = sum;
    }
  }
  for (int i = 0; i < Ranks; i++) {
    for (int v = 0; v < Vectors; v++) store(grad_weight_rows + i * padded + v * kLanes, grad_weight[i][v]);
  }
}

// `Vectors` vectors of channels from channel d on, for one chunk.
template <int Vectors>
void backward_vectors(const Chunk& c, int64_t d, const float* checkpoint, const float* grad_out, BackwardBuffers& w,
                      Vector* grad_hidden, float* grad_tokens, float* grad_parameters) {
  const avsseg_scan& s = c.s;
  const int64_t k = c.direction, padded = padded_channels(s), width = projection_width(s);
  const float* dt_weight = s.dt_weight + k * s.rank * padded + d;
  const float* tokens = s.tokens + c.batch * s.positions * s.channels + d;
  const float* grad_out_rows = grad_out + (c.batch * (s.positions - s.output_from) - s.output_from) * s.channels + d;
  float* grad_token_rows = grad_tokens + c.batch * s.positions * s.channels + d;
  int64_t lanes[Vectors];
  for (int v = 0; v < Vectors; v++) lanes[v] = lanes_at(s, d + v * kLanes);

  for (int64_t t = 0; t < c.steps; t++) {
    const int64_t p = c.position(t);
    const float* dt = c.projected(t);
    if (c.index > 0) {
      const int64_t next = c.position(t - s.checkpoint_interval);
      prefetch(tokens + next * s.channels, Vectors * kLanes);
      prefetch(grad_token_rows + next * s.channels, Vectors * kLanes);
      if (next >= s.output_from) prefetch(grad_out_rows + next * s.channels, Vectors * kLanes);
      prefetch(c.projected(t - s.checkpoint_interval), width);
    }
    Vector x[Vectors], delta[Vectors], exp_minus_abs[Vectors];
    for (int v = 0; v < Vectors; v++) {
      x[v] = load(s.dt_bias + k * padded + d + v * kLanes);
      for (int64_t r = 0; r < s.rank; r++) x[v] += load(dt_weight + r * padded + v * kLanes) * dt[r];
      delta[v] = x[v];
    }
    softplus(delta, exp_minus_abs);
    for (int v = 0; v < Vectors; v++) {
      const int64_t at = t * Vectors + v, offset = p * s.channels + v * kLanes;
      w.delta[at] = delta[v];
      w.sigmoid[at] = sigmoid(x[v], exp_minus_abs[v]);
      w.drive[at] = delta[v] * load(tokens + offset, lanes[v]);
      w.grad_out[at] = p >= s.output_from ? load(grad_out_rows + offset, lanes[v]) : Vector{};
      w.grad_drive[at] = Vector{};
      w.grad_delta[at] = Vector{};
    }
  }

  int64_t n = 0;
  for (; n + kStateGroup <= s.states; n += kStateGroup) {
    backward_states<kStateGroup, Vectors>(c, d, lanes, n, checkpoint, w, grad_hidden, grad_parameters);
  }
  for (; n < s.states; n++) backward_states<1, Vectors>(c, d, lanes, n, checkpoint, w, grad_hidden, grad_parameters);

  float *grad_bias = grad_parameters + (s.states + s.rank) * padded, *grad_skip = grad_bias + padded;
  for (int v = 0; v < Vectors; v++) {
    const Vector skip = load(s.skip + k * padded + d + v * kLanes);
    Vector sum_bias = load(grad_bias + v * kLanes), sum_skip = load(grad_skip + v * kLanes);
    for (int64_t t = 0; t < c.steps; t++) {
      const int64_t at = t * Vectors + v, offset = c.position(t) * s.channels + v * kLanes;
      const Vector u = load(tokens + offset, lanes[v]);
      float* grad_token = grad_token_rows + offset;
      store(grad_token, load(grad_token, lanes[v]) + (w.grad_drive[at] * w.delta[at] + skip * w.grad_out[at]),
            lanes[v]);
      sum_skip += w.grad_out[at] * u;
      const Vector grad_x = (w.grad_delta[at] * kLn2 + w.grad_drive[at] * u) * w.sigmoid[at];
      sum_bias += grad_x;
      w.grad_delta[at] = grad_x;
    }
    store(grad_bias + v * kLanes, sum_bias);
    store(grad_skip + v * kLanes, sum_skip);
  }
  int64_t r = 0;
  for (; r + kRankGroup <= s.rank; r += kRankGroup) backward_ranks<kRankGroup, Vectors>(c, d, r, w, grad_parameters);
  for (; r < s.rank; r++) backward_ranks<1, Vectors>(c, d, r, w, grad_parameters);
}

// Where one block of channels leaves its share of the gradient of `projected`: the row of step l is at
// rows + offset[l] * stride, in the gradient itself if there is one block, in scan order in a buffer otherwise.
struct RowTarget {
  float* rows;
  int64_t stride;
  const int64_t* offset;
};

// Direction k of one batch element for the channels [first, last).
void backward_task(const avsseg_scan& s, int64_t b, int64_t k, int64_t first, int64_t last, const float* checkpoints,
                   const float* grad_out, Vector* memory, float* grad_tokens, RowTarget target,
                   float* grad_parameters) {
  const int64_t padded = padded_channels(s), width = projection_width(s);
  const int64_t vectors = (last - first + kLanes - 1) / kLanes;
  BackwardBuffers w(s, memory);
  memset(w.grad_hidden, 0, static_cast<size_t>(vectors * s.states) * sizeof(Vector));
  for (int64_t row = 0; row < s.states + s.rank + 2; row++) {
    memset(grad_parameters + row * padded + first, 0, static_cast<size_t>(vectors * kLanes) * sizeof(float));
  }
  for (int64_t q = chunk_count(s) - 1; q >= 0; q--) {
    const Chunk c(s, b, k, q);
    const float* checkpoint = checkpoints + ((b * s.directions + k) * chunk_count(s) + q) * s.states * s.channels;
    memset(w.grad_rows, 0, static_cast<size_t>(c.steps * width) * sizeof(Vector));
    int64_t v = 0;
    for (; v + kVectorGroup <= vectors; v += kVectorGroup) {
      const int64_t d = first + v * kLanes;
      backward_vectors<kVectorGroup>(c, d, checkpoint + d, grad_out, w, w.grad_hidden + v * s.states, grad_tokens,
                                     grad_parameters + d);
    }
    for (; v < vectors; v++) {
      const int64_t d = first + v * kLanes;
      backward_vectors<1>(c, d, checkpoint + d, grad_out, w, w.grad_hidden + v * s.states, grad_tokens,
                          grad_parameters + d);
    }
    for (int64_t t = 0; t < c.steps; t++) {
      const int64_t l = c.begin + t;
      sum_lanes(w.grad_rows + t * width, width, target.rows + (target.offset ? target.offset[l] : l) * target.stride);
    }
  }
}

// The channels are cut into blocks by the shape alone, so that sums over channels do not depend on the thread count.
int64_t backward_blocks(const avsseg_scan& s) {
  const int64_t enough = s.batch >= kTasks ? 1 : (kTasks + s.batch - 1) / (s.batch > 0 ? s.batch : 1);
  const int64_t most = (s.channels + 63) / 64;
  return enough < most ? enough : most;
}

// Adds up what the blocks of channels left for step l of direction k, rows (B, blocks, L, R + 2N).
void add_shares(const avsseg_scan& s, int64_t b, int64_t k, int64_t l, int64_t blocks, const float* rows,
                float* grad_projected) {
  const int64_t width = projection_width(s), row = s.directions * width;
  const int64_t* p = s.plan + k * s.length + l;
  float* sums = grad_projected + b * s.positions * row + k * width;
  if (l + kPrefetchDistance < s.length) prefetch(sums + p[kPrefetchDistance] * row, width);
  float* sum = sums + p[0] * row;
  const float* share = rows + (b * blocks * s.length + l) * width;
  for (int64_t j = 0; j < width; j++) sum[j] = share[j];
  for (int64_t i = 1; i < blocks; i++) {
    share += s.length * width;
    for (int64_t j = 0; j < width; j++) sum[j] += share[j];
  }
}

void add_batch(int64_t batch, const float* shares, int64_t stride, int64_t count, float* sum) {
  for (int64_t d = 0; d < count; d++) sum[d] = 0.f;
  for (int64_t b = 0; b < batch; b++) {
    for (int64_t d = 0; d < count; d++) sum[d] += shares[b * stride + d];
  }
}

int backward(const avsseg_scan& s, const float* checkpoints, const float* grad_out, float* grad_tokens,
             float* grad_projected, float* grad_parameters) {
  const int64_t padded = padded_channels(s), width = projection_width(s), row = s.directions * width;
  const int64_t parameter_rows = s.states + s.rank + 2, blocks = backward_blocks(s);
  const int64_t units = (padded + kBlockUnit - 1) / kBlockUnit;
  const int64_t block_vectors = (units + blocks - 1) / (blocks > 0 ? blocks : 1) * kBlockUnit / kLanes;
  const bool shared = blocks > 1;
  Workspace<Vector> workspace(s.threads, BackwardBuffers::size(s, block_vectors));
  Workspace<float> partial_rows(1, shared ? s.batch * blocks * s.length * width : 0);
  Workspace<float> partial_parameters(1, s.batch * s.directions * parameter_rows * padded);
  if (!workspace.valid() || !partial_rows.valid() || !partial_parameters.valid()) return AVSSEG_OUT_OF_MEMORY;
  float *rows = partial_rows.of(0), *parameters = partial_parameters.of(0);

#pragma omp parallel num_threads(static_cast<int>(s.threads))
  {
    const FlushDenormals flush;
    Vector* memory = workspace.of(thread_number());
    if (!shared) {
#pragma omp for schedule(dynamic)
      for (int64_t b = 0; b < s.batch; b++) {
        for (int64_t k = 0; k < s.directions; k++) {
          const RowTarget target = {grad_projected + b * s.positions * row + k * width, row, s.plan + k * s.length};
          backward_task(s, b, k, 0, s.channels, checkpoints, grad_out, memory, grad_tokens, target,
                        parameters + (b * s.directions + k) * parameter_rows * padded);
        }
      }
    } else {
      // One direction at a time: the blocks' shares of all directions at once would be K times larger.
      for (int64_t k = 0; k < s.directions; k++) {
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < s.batch; b++) {
          for (int64_t i = 0; i < blocks; i++) {
            const int64_t first = i * units / blocks * kBlockUnit, end = (i + 1) * units / blocks * kBlockUnit;
            const RowTarget target = {rows + (b * blocks + i) * s.length * width, width, nullptr};
            backward_task(s, b, k, first, end < s.channels ? end : s.channels, checkpoints, grad_out, memory,
                          grad_tokens, target, parameters + (b * s.directions + k) * parameter_rows * padded);
          }
        }
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < s.batch; b++) {
          for (int64_t l = 0; l < s.length; l++) add_shares(s, b, k, l, blocks, rows, grad_projected);
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s.directions * parameter_rows; i++) {
      add_batch(s.batch, parameters + i * padded, s.directions * parameter_rows * padded, padded,
                grad_parameters + i * padded);
    }
  }
  return AVSSEG_OK;
}

}  // namespace
