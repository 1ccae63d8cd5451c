// One vector of channels, for the instruction set that this translation unit is compiled for.
//
// Everything here and in the files that include it has internal linkage and uses no standard template: a function that
// the linker may merge between translation units would carry AVX-512 code into the portable path.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define AVSSEG_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define AVSSEG_VECTOR_BYTES 32
#else
#define AVSSEG_VECTOR_BYTES 16
#endif

#define AVSSEG_INLINE inline __attribute__((always_inline))

namespace {

constexpr int64_t kLanes = AVSSEG_VECTOR_BYTES / 4;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

typedef float Vector __attribute__((vector_size(AVSSEG_VECTOR_BYTES)));
typedef float UnalignedVector __attribute__((vector_size(AVSSEG_VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t IntegerVector __attribute__((vector_size(AVSSEG_VECTOR_BYTES)));
typedef float Quad __attribute__((vector_size(16)));
typedef float UnalignedQuad __attribute__((vector_size(16), aligned(4), may_alias));

AVSSEG_INLINE Vector load(const float* p) { return *reinterpret_cast<const UnalignedVector*>(p); }
AVSSEG_INLINE void store(float* p, Vector v) { *reinterpret_cast<UnalignedVector*>(p) = v; }

// The last vector of a row may have fewer lanes than the others.
AVSSEG_INLINE Vector load(const float* p, int64_t lanes) {
  if (__builtin_expect(lanes == kLanes, 1)) return load(p);
  Vector v = {};
  memcpy(&v, p, static_cast<size_t>(lanes) * sizeof(float));
  return v;
}

AVSSEG_INLINE void store(float* p, Vector v, int64_t lanes) {
  if (__builtin_expect(lanes == kLanes, 1)) {
    store(p, v);
  } else {
    memcpy(p, &v, static_cast<size_t>(lanes) * sizeof(float));
  }
}

// Scan orders jump between rows in ways that no hardware prefetcher follows.
AVSSEG_INLINE void prefetch(const float* p, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(p + i);
}

AVSSEG_INLINE Vector broadcast(float x) { return x - Vector{}; }

// Comparisons with NaN are false, so the bound must be the operand that is dropped: max(bound, NaN) is NaN. The x86
// instructions drop their first operand too, but GCC does not see that they are this expression.
AVSSEG_INLINE Vector at_least(Vector bound, Vector x) {
#if AVSSEG_VECTOR_BYTES == 32
  return reinterpret_cast<Vector>(_mm256_max_ps(reinterpret_cast<__m256>(bound), reinterpret_cast<__m256>(x)));
#elif AVSSEG_VECTOR_BYTES == 16 && defined(__SSE2__)
  return reinterpret_cast<Vector>(_mm_max_ps(reinterpret_cast<__m128>(bound), reinterpret_cast<__m128>(x)));
#else
  return bound > x ? bound : x;
#endif
}

AVSSEG_INLINE bool all_of(IntegerVector mask) {
#if AVSSEG_VECTOR_BYTES == 32
  return _mm256_movemask_epi8(reinterpret_cast<__m256i>(mask)) == -1;
#else
  bool all = true;
  for (int64_t i = 0; i < kLanes; i++) all &= mask[i] != 0;
  return all;
#endif
}

AVSSEG_INLINE Vector absolute(Vector x) {
  return reinterpret_cast<Vector>(reinterpret_cast<IntegerVector>(x) & 0x7fffffff);
}

// Exponentials worked on in step. One alone is a chain of ten dependent operations, and processors of 256 bits or less
// look ahead too little to overlap two chains that follow one another.
#if AVSSEG_VECTOR_BYTES == 64
constexpr int64_t kExponentials = 1;
#else
constexpr int64_t kExponentials = 4;
#endif

constexpr float kLowestExponent = -126.f;
// 1.5 * 2^23 + 127: the low bits of x + kRounding are round(x) + 127, the exponent field of 2^round(x).
constexpr float kRounding = 12583039.f;

// x[i] = 2^(whole + f[i]), whole[i] in the form that the caller's instruction set wants.
template <int64_t Count>
AVSSEG_INLINE void exp2_reduced(const Vector (&whole)[Count], const Vector (&f)[Count], Vector (&x)[Count]) {
  constexpr float kCoefficients[] = {9.6715129911e-3f, 5.5507335811e-2f, 2.4022242426e-1f, 6.9314700365e-1f, 1.f};
  const Vector leading = broadcast(1.3264727313e-3f);
  for (int64_t i = 0; i < Count; i++) x[i] = leading;
#pragma GCC unroll 5
  for (const float coefficient : kCoefficients) {
    for (int64_t i = 0; i < Count; i++) x[i] = x[i] * f[i] + coefficient;
  }
  for (int64_t i = 0; i < Count; i++) {
#if AVSSEG_VECTOR_BYTES == 64
    x[i] =
        reinterpret_cast<Vector>(_mm512_scalef_ps(reinterpret_cast<__m512>(x[i]), reinterpret_cast<__m512>(whole[i])));
#else
    x[i] *= reinterpret_cast<Vector>(reinterpret_cast<IntegerVector>(whole[i]) << 23);
#endif
  }
}

// x[i] = 2^x[i] for x[i] <= 0. The polynomial is 1 + f * q(f) on [-1/2, 1/2]: exact at 0, with an error that vanishes
// with f, because decays are close to 1 and their error is amplified by 1 / (1 - decay). Maximum relative error 1.7e-7.
template <int64_t Count>
AVSSEG_INLINE void exp2_nonpositive(Vector (&x)[Count]) {
  Vector whole[Count], f[Count];
#if AVSSEG_VECTOR_BYTES == 64
  for (int64_t i = 0; i < Count; i++) {
    f[i] = reinterpret_cast<Vector>(_mm512_reduce_ps(reinterpret_cast<__m512>(x[i]), 0));
    whole[i] = x[i] - f[i];
  }
#else
  for (int64_t i = 0; i < Count; i++) x[i] = at_least(broadcast(kLowestExponent), x[i]);
  for (int64_t i = 0; i < Count; i++) whole[i] = x[i] + kRounding;
  for (int64_t i = 0; i < Count; i++) f[i] = x[i] - (whole[i] - kRounding);
#endif
  exp2_reduced(whole, f, x);
}

// decay[i] = 2^(delta rate_i), rate_i <= 0 at rates + i * stride. `Bounded` promises that no exponent is below
// kLowestExponent, which saves a fifth of the work.
template <int64_t Count, bool Bounded>
AVSSEG_INLINE void decays(Vector delta, const float* rates, int64_t stride, Vector (&decay)[Count]) {
#if AVSSEG_VECTOR_BYTES < 64
  if (Bounded) {
    Vector whole[Count], f[Count];
    for (int64_t i = 0; i < Count; i++) whole[i] = delta * load(rates + i * stride) + kRounding;
    for (int64_t i = 0; i < Count; i++) f[i] = delta * load(rates + i * stride) - (whole[i] - kRounding);
    exp2_reduced(whole, f, decay);
    return;
  }
#endif
  for (int64_t i = 0; i < Count; i++) decay[i] = delta * load(rates + i * stride);
  exp2_nonpositive(decay);
}

// log(1 + e^x) = max(x, 0) + t q(t), t = e^-|x|: relative error 9e-7, also where the value is small. x[i] becomes its
// softplus, exp_minus_abs[i] its t.
template <int64_t Count>
AVSSEG_INLINE void softplus(Vector (&x)[Count], Vector (&exp_minus_abs)[Count]) {
  constexpr float kCoefficients[] = {-2.9505232349e-2f, 7.8225940466e-2f, -1.3663244247e-1f, 1.9106006622e-1f,
                                     -2.4842981994e-1f, 3.3319097757e-1f, -4.9999493361e-1f, 9.9999994040e-1f};
  Vector q[Count];
  for (int64_t i = 0; i < Count; i++) exp_minus_abs[i] = absolute(x[i]) * -kLog2E;
  exp2_nonpositive(exp_minus_abs);
  for (int64_t i = 0; i < Count; i++) q[i] = broadcast(5.2326926962e-3f);
#pragma GCC unroll 8
  for (const float coefficient : kCoefficients) {
    for (int64_t i = 0; i < Count; i++) q[i] = q[i] * exp_minus_abs[i] + coefficient;
  }
  for (int64_t i = 0; i < Count; i++) x[i] = at_least(Vector{}, x[i]) + exp_minus_abs[i] * q[i];
}

// The derivative of softplus at x, given t = e^-|x|.
AVSSEG_INLINE Vector sigmoid(Vector x, Vector t) { return (x < 0.f ? t : broadcast(1.f)) / (t + 1.f); }

#if defined(__clang__) || __GNUC__ >= 12
#define AVSSEG_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t QuadIndex __attribute__((vector_size(16)));
#define AVSSEG_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (QuadIndex{i, j, k, l}))
#endif

AVSSEG_INLINE Quad fold(const Vector& v) {
  const float* p = reinterpret_cast<const float*>(&v);
  Quad sum = *reinterpret_cast<const UnalignedQuad*>(p);
  for (int64_t i = 4; i < kLanes; i += 4) sum += *reinterpret_cast<const UnalignedQuad*>(p + i);
  return sum;
}

// sums[i] = the sum of the lanes of rows[i], for `count` rows.
void sum_lanes(const Vector* rows, int64_t count, float* sums) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const Quad a = fold(rows[i]), b = fold(rows[i + 1]), c = fold(rows[i + 2]), d = fold(rows[i + 3]);
    const Quad ab = AVSSEG_SHUFFLE(a, b, 0, 4, 1, 5) + AVSSEG_SHUFFLE(a, b, 2, 6, 3, 7);
    const Quad cd = AVSSEG_SHUFFLE(c, d, 0, 4, 1, 5) + AVSSEG_SHUFFLE(c, d, 2, 6, 3, 7);
    *reinterpret_cast<UnalignedQuad*>(sums + i) =
        AVSSEG_SHUFFLE(ab, cd, 0, 1, 4, 5) + AVSSEG_SHUFFLE(ab, cd, 2, 3, 6, 7);
  }
  for (; i < count; i++) {
    const Quad a = fold(rows[i]);
    sums[i] = (a[0] + a[2]) + (a[1] + a[3]);
  }
}

// States and their gradients decay exponentially into denormals, which some processors handle a hundred times slower.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned saved_;
#else
  FlushDenormals() {}
#endif
};

}  // namespace
