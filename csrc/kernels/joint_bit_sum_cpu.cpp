// joint_bit_sum on the CPU: a register tile of kRows x 2 vectors, whose factors are packed per block of rows (forward) or
// per group of rows (backward). Every number is summed in one order, whoever computes it.
#include "joint_bit_sum.h"

#include <cmath>
#include <cstdlib>

#include "convert.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 8;  // 16 accumulators of 32 registers
#else
constexpr int kRows = 4;  // 8 of 16
#endif
constexpr int64_t kDepth = 128;  // rows of a packed block: a panel of each factor stays in L1
constexpr int64_t kGroup = 32;   // rows of a group

template <class C>
struct VectorOf {
  using type = Vec;
};
template <>
struct VectorOf<double> {
  using type = DoubleVec;
};
template <class C>
using V = typename VectorOf<C>::type;
template <class C>
constexpr int kWidth = 2 * sizeof(Vec) / sizeof(C);  // columns of a tile

constexpr int log2_of(int n) { return n == 1 ? 0 : 1 + log2_of(n / 2); }

template <class C>
struct Scratch {
  C* data;
  explicit Scratch(int64_t count)
      : data((C*)std::aligned_alloc(64, (size_t)ceil_div(count * (int64_t)sizeof(C), 64) * 64)) {}
  ~Scratch() { std::free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// accumulator[r] = sum_k rows[k][r] * columns[k]: kRows numbers times two vectors a step.
template <class C>
PYRAMID_INLINE void tile(const C* rows, const C* columns, int64_t depth, V<C> (&left)[kRows], V<C> (&right)[kRows]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) left[r] = right[r] = V<C>{};
  for (int64_t k = 0; k < depth; ++k, rows += kRows, columns += kWidth<C>) {
    const V<C> c0 = load<V<C>>(columns), c1 = load<V<C>>(columns + kWidth<C> / 2);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      left[r] += c0 * rows[r];
      right[r] += c1 * rows[r];
    }
  }
}

// -- probabilities -----------------------------------------------------------------------------------------------------

// sigmoid(-|y|) and its complement for a vector of logits.
PYRAMID_INLINE void sigmoids(const float* y, float* zero, float* one) {
  for (int64_t j = 0; j < kGroup; j += kLanes) {
    const Vec logit = load<Vec>(y + j), a = abs(logit), limit = splat(87.0f);
    const Vec t = a > limit ? splat(0.0f) : exp(-min(limit, a));  // in this form NaN stays
    const Vec likely = splat(1.0f) / (splat(1.0f) + t), other = t * likely;
    store(zero + j, logit > splat(0.0f) ? other : likely);
    store(one + j, logit > splat(0.0f) ? likely : other);
  }
}
PYRAMID_INLINE void sigmoids(const double* y, double* zero, double* one) {
  for (int64_t j = 0; j < kGroup; ++j) {
    const double t = ::exp(-__builtin_fabs(y[j])), likely = 1 / (1 + t);
    zero[j] = y[j] > 0 ? t * likely : likely;
    one[j] = y[j] > 0 ? likely : t * likely;
  }
}

template <class T>
void probabilities_of_group(const JointProbabilitiesParams<T>& p, int64_t first) {
  using C = compute_t<T>;
  const int64_t padded = p.shape.padded_rows(), bits = p.shape.num_bits;
  const int64_t count = p.shape.num_rows - first < kGroup ? p.shape.num_rows - first : kGroup;
  const C scale = (C)(4 / p.temperature);
  alignas(64) C logit[kGroup];
  for (int64_t i = 0; i < bits; ++i) {
    for (int64_t j = 0; j < kGroup; ++j) logit[j] = j < count ? load_one(p.x + (first + j) * bits + i) * scale : 0;
    C* const zero = p.probabilities + i * padded + first;
    C* const one = zero + bits * padded;
    sigmoids(logit, zero, one);
    for (int64_t j = count; j < kGroup; ++j) zero[j] = one[j] = 0;
  }
}

// -- forward -----------------------------------------------------------------------------------------------------------

// The products of the first bits of a half: table[code] for the codes of `width`, zeros where there are fewer.
template <class C>
void row_table(const C* zero, const C* one, int64_t stride, int64_t bits, int width, C* table) {
  for (int j = 0; j < width; ++j) table[j] = 0;
  table[0] = 1;
  int size = 1;
  for (int64_t i = 0; i < bits && size < width; ++i, size *= 2) {
    for (int j = 0; j < size; ++j) {
      table[size + j] = table[j] * one[i * stride];
      table[j] *= zero[i * stride];
    }
  }
}

// One factor of a block: panels of `width` codes, each (depth, width), rows from `first` on.
template <int width, class C>
void pack(const JointBitSumParams<C>& p, const C* table, int64_t first_bit, int64_t bits, int64_t first_panel,
          int64_t num_panels, int64_t first, int64_t depth, C* packed) {
  const int64_t padded = p.shape.padded_rows(), one = p.shape.num_bits * padded;
  alignas(64) C factor[kDepth];
  for (int64_t panel = 0; panel < num_panels; ++panel, packed += kDepth * width) {
    for (int64_t k = 0; k < depth; ++k) factor[k] = 1;
    for (int64_t i = log2_of(width); i < bits; ++i) {
      const bool set = (first_panel + panel) >> (i - log2_of(width)) & 1;
      const C* bit = p.probabilities + (first_bit + i) * padded + first + (set ? one : 0);
      for (int64_t k = 0; k < depth; ++k) factor[k] *= bit[k];
    }
    const C* row = table + first * width;
    for (int64_t k = 0; k < depth; ++k, row += width)
      for (int j = 0; j < width; ++j) packed[k * width + j] = factor[k] * row[j];
  }
}

// joint[low + r, high ...] = or += the tile; what lies beyond the codes is dropped.
template <class C>
PYRAMID_INLINE void put(const JointBitSumParams<C>& p, int64_t low, int64_t high, bool add, const V<C> (&left)[kRows],
                        const V<C> (&right)[kRows]) {
  const int64_t low_codes = p.shape.low_codes(), high_codes = p.shape.high_codes();
  constexpr int half = kWidth<C> / 2;
  if (low + kRows <= low_codes && high + kWidth<C> <= high_codes) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      C* const out = p.joint + (low + r) * high_codes + high;
      store(out, add ? load<V<C>>(out) + left[r] : left[r]);
      store(out + half, add ? load<V<C>>(out + half) + right[r] : right[r]);
    }
    return;
  }
  for (int r = 0; r < kRows && low + r < low_codes; ++r) {
    alignas(64) C sums[kWidth<C>];
    store(sums, left[r]);
    store(sums + half, right[r]);
    C* const out = p.joint + (low + r) * high_codes + high;
    for (int64_t j = 0; j < kWidth<C> && high + j < high_codes; ++j) out[j] = add ? out[j] + sums[j] : sums[j];
  }
}

template <class C>
void sum_block(const JointBitSumParams<C>& p, int64_t low_first, int64_t low_count, int64_t high_first,
               int64_t high_count, C* low, C* high) {
  const JointShape& shape = p.shape;
  const int64_t low_panels = ceil_div(low_count, (int64_t)kRows), high_panels = ceil_div(high_count, (int64_t)kWidth<C>);
  V<C> left[kRows], right[kRows];
  for (int64_t first = 0; first < shape.padded_rows(); first += kDepth) {
    const int64_t depth = shape.padded_rows() - first < kDepth ? shape.padded_rows() - first : kDepth;
    pack<kRows>(p, p.low_table, 0, shape.low_bits(), low_first / kRows, low_panels, first, depth, low);
    pack<kWidth<C>>(p, p.high_table, shape.low_bits(), shape.high_bits(), high_first / kWidth<C>, high_panels, first,
                    depth, high);
    for (int64_t j = 0; j < high_panels; ++j) {
      for (int64_t i = 0; i < low_panels; ++i) {
        tile(low + i * kDepth * kRows, high + j * kDepth * kWidth<C>, depth, left, right);
        put(p, low_first + i * kRows, high_first + j * kWidth<C>, first > 0, left, right);
      }
    }
  }
}

// -- backward ----------------------------------------------------------------------------------------------------------

// The table of a half for one tile of rows, (codes, kWidth): vectors run along the rows.
template <class C>
void column_table(const C* zero, const C* one, int64_t stride, int64_t bits, C* table) {
  constexpr int width = kWidth<C>, half = width / 2;
  store(table, V<C>{} + 1);
  store(table + half, V<C>{} + 1);
  for (int64_t i = 0, size = 1; i < bits; ++i, size *= 2) {
    for (int h = 0; h < 2; ++h) {
      const V<C> p0 = load<V<C>>(zero + i * stride + h * half), p1 = load<V<C>>(one + i * stride + h * half);
      for (int64_t j = 0; j < size; ++j) {
        C* const at = table + j * width + h * half;
        const V<C> value = load<V<C>>(at);
        store(at + size * width, value * p1);
        store(at, value * p0);
      }
    }
  }
}

// The gradients of the logits of one half. panels: grad as (codes / kRows, other_codes, kRows); mine and other: tables of
// the two halves. grads: (bits, kWidth).
template <class C>
void half_backward(const C* panels, const C* mine, const C* other, int64_t bits, int64_t other_codes, const C* zero,
                   const C* one, int64_t stride, C scale, C* grads) {
  constexpr int width = kWidth<C>, half = width / 2, tile_bits = log2_of(kRows);
  const int64_t codes = int64_t{1} << bits;
  V<C> with[2][kMostJointBits / 2 + 1] = {}, without[2][kMostJointBits / 2 + 1] = {};
  V<C> product[2][kRows];
  for (int64_t code = 0; code < codes; code += kRows) {
    tile(panels + code * other_codes, other, other_codes, product[0], product[1]);
    const int count = codes - code < kRows ? (int)(codes - code) : kRows;
    for (int h = 0; h < 2; ++h) {
      V<C> total = {};
      for (int r = 0; r < count; ++r) {
        const V<C> u = product[h][r] * load<V<C>>(mine + (code + r) * width + h * half);
        total += u;
        for (int i = 0; i < tile_bits && i < bits; ++i) (r >> i & 1 ? with : without)[h][i] += u;
      }
      for (int64_t i = tile_bits; i < bits; ++i) (code >> i & 1 ? with : without)[h][i] += total;
    }
  }
  for (int64_t i = 0; i < bits; ++i) {
    for (int h = 0; h < 2; ++h) {
      const V<C> p0 = load<V<C>>(zero + i * stride + h * half), p1 = load<V<C>>(one + i * stride + h * half);
      store(grads + i * width + h * half, (p0 * with[h][i] - p1 * without[h][i]) * scale);
    }
  }
}

}  // namespace

template <class T>
void joint_probabilities_rows(const JointProbabilitiesParams<T>& p, int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group) probabilities_of_group(p, group * kGroup);
}

template <class C>
void joint_tables_rows(const JointBitSumParams<C>& p, int64_t begin, int64_t end) {
  const int64_t padded = p.shape.padded_rows(), one = p.shape.num_bits * padded, half = p.shape.low_bits() * padded;
  for (int64_t n = begin * kGroup; n < end * kGroup; ++n) {
    const C* zero = p.probabilities + n;
    row_table(zero, zero + one, padded, p.shape.low_bits(), kRows, p.low_table + n * kRows);
    row_table(zero + half, zero + half + one, padded, p.shape.high_bits(), kWidth<C>, p.high_table + n * kWidth<C>);
  }
}

template <class C>
void joint_bit_sum_blocks(const JointBitSumParams<C>& p, int64_t begin, int64_t end) {
  const int64_t low_codes = p.shape.low_codes(), high_codes = p.shape.high_codes();
  const int64_t low_block = block_of(low_codes, 8), high_block = block_of(high_codes, 32);
  const int64_t across = ceil_div(high_codes, high_block);
  Scratch<C> low(kDepth * low_block), high(kDepth * high_block);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t low_first = block / across * low_block, high_first = block % across * high_block;
    const int64_t low_left = low_codes - low_first, high_left = high_codes - high_first;
    sum_block(p, low_first, low_left < low_block ? low_left : low_block, high_first,
              high_left < high_block ? high_left : high_block, low.data, high.data);
  }
}

template <class T>
void joint_panels(const JointBitSumBackwardParams<T>& p, int64_t begin, int64_t end) {
  const int64_t low_codes = p.shape.low_codes(), high_codes = p.shape.high_codes();
  const int64_t low_panels = p.padded_low() / 8;
  for (int64_t panel = begin; panel < end; ++panel) {
    const bool is_low = panel < low_panels;
    const int64_t first = (is_low ? panel : panel - low_panels) * 8;
    const int64_t codes = is_low ? low_codes : high_codes, depth = is_low ? high_codes : low_codes;
    const int64_t step = is_low ? high_codes : 1, along = is_low ? 1 : high_codes;
    for (int64_t code = first; code < first + 8; code += kRows) {  // an item is 8 codes in every instruction set
      compute_t<T>* const packed = (is_low ? p.packed_low : p.packed_high) + code * depth;
      for (int64_t k = 0; k < depth; ++k)
        for (int r = 0; r < kRows; ++r)
          packed[k * kRows + r] = code + r < codes ? p.grad[(code + r) * step + k * along] : 0;
    }
  }
}

template <class T>
void joint_bit_sum_backward_rows(const JointBitSumBackwardParams<T>& p, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  constexpr int width = kWidth<C>;
  const JointShape& shape = p.shape;
  const int64_t padded = shape.padded_rows(), bits = shape.num_bits, low_bits = shape.low_bits();
  const C scale = (C)(4 / p.temperature);
  Scratch<C> low(shape.low_codes() * width), high(shape.high_codes() * width), grads(bits * width);
  for (int64_t first = begin * kGroup; first < end * kGroup && first < shape.num_rows; first += width) {
    const C* zero = p.probabilities + first;
    const C* one = zero + bits * padded;
    const int64_t middle = low_bits * padded;
    column_table(zero, one, padded, low_bits, low.data);
    column_table(zero + middle, one + middle, padded, shape.high_bits(), high.data);
    half_backward(p.packed_low, low.data, high.data, low_bits, shape.high_codes(), zero, one, padded, scale, grads.data);
    half_backward(p.packed_high, high.data, low.data, shape.high_bits(), shape.low_codes(), zero + middle, one + middle,
                  padded, scale, grads.data + low_bits * width);
    const int64_t count = shape.num_rows - first < width ? shape.num_rows - first : width;
    for (int64_t n = 0; n < count; ++n)
      for (int64_t i = 0; i < bits; ++i) store_one(p.grad_x + (first + n) * bits + i, grads.data[i * width + n]);
  }
}

#define PYRAMID_INSTANTIATE(T)                                                                                   \
  template void joint_probabilities_rows<T>(const JointProbabilitiesParams<T>&, int64_t, int64_t);               \
  template void joint_panels<T>(const JointBitSumBackwardParams<T>&, int64_t, int64_t);                          \
  template void joint_bit_sum_backward_rows<T>(const JointBitSumBackwardParams<T>&, int64_t, int64_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE
#define PYRAMID_INSTANTIATE(C)                                                             \
  template void joint_tables_rows<C>(const JointBitSumParams<C>&, int64_t, int64_t);       \
  template void joint_bit_sum_blocks<C>(const JointBitSumParams<C>&, int64_t, int64_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
#undef PYRAMID_INSTANTIATE

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
