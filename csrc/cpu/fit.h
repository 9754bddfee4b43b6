// The whole EM loop on the Gram matrix, in one call, and its backward.
//
// The responsibilities are kept as p, before they are divided by their column sums: the division is a factor per
// column, and a factor per column passes through gram·p. So an iteration is two parallel steps: a softmax over rows of
// [D, K], and gram·p with the squared lengths.
#pragma once

#include "cpu/tile.h"

namespace {

// p[k] = softmax of row[k] * factor[k], where basis k counts times[k] times; zero where that is zero, in the padding.
// `row` and `p` may be the same.
template <class T>
inline void softmax_row(const T* row, const T* factor, const T* times, int64_t thin, T* p) {
  constexpr int V = kLanes<T>;
  Vec<T> peak = splat(T(-INFINITY));
  for (int64_t k = 0; k < thin; k += V) {
    const Vec<T> z = load(row + k) * load(factor + k);
    const Vec<T> inside = load(times + k) > splat(T(0)) ? z : splat(T(-INFINITY));
    peak = inside > peak ? inside : peak;
  }
  const T top = most_of_lanes<T>(peak);
  Vec<T> sum = {};
  for (int64_t k = 0; k < thin; k += V) {
    const Vec<T> z = load(row + k) * load(factor + k) - top;
    const Vec<T> e = exp_of_nonpositive(z > splat(T(0)) ? splat(T(0)) : z);  // padding may be above
    store(p + k, load(times + k) > splat(T(0)) ? e : Vec<T>{});
    sum += e * load(times + k);
  }
  const T inverse = T(1) / sum_of_lanes<T>(sum);
  for (int64_t k = 0; k < thin; k += V) store(p + k, load(p + k) * inverse);
}

inline void nothing(int64_t, int64_t) {}

// (G0) The first E-step's logits, padded.
template <class T>
void start_from_colsum(const T* colsum, const T* init, int64_t width, int64_t num_bases, int64_t thin, T* logits) {
  for (int64_t d = 0; d < width; ++d)
    for (int64_t k = 0; k < thin; ++k) logits[d * thin + k] = k < num_bases ? colsum[d] * init[k] : T(0);
}

// Bases that start alike stay alike, so EM runs on one of each. The release starts from ±1: its bases are two.
template <class T>
struct Distinct {
  int64_t num_bases, count = 0;
  Scratch<int64_t> first, of;  // of every distinct basis, where it stands first; of every basis, which one it is
  Scratch<T> times;            // how often a distinct one occurs

  // same(k, l): whether two bases start alike
  template <class F>
  Distinct(int64_t num_bases_, const F& same)
      : num_bases(num_bases_), first(num_bases), of(num_bases), times(num_bases) {
    for (int64_t k = 0; k < num_bases; ++k) {
      int64_t i = 0;
      while (i < count && !same(first[i], k)) ++i;
      if (i == count) {
        first[count] = k;
        times[count++] = 0;
      }
      times[i] += 1;
      of[k] = i;
    }
  }
  // [rows, thin] of the distinct ones, times a factor for each, to [rows, bases] of all
  void expand(const T* src, int64_t rows, int64_t thin, const T* factor, T* dst) const {
    if (count == num_bases) return unpad_thin(src, rows, num_bases, thin, factor, dst);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < num_bases; ++k) dst[i * num_bases + k] = src[i * thin + of[k]] * factor[of[k]];
  }
};
template <class T>
Distinct<T> distinct_starts(const T* init, int64_t num_bases) {
  return Distinct<T>(num_bases, [&](int64_t k, int64_t l) { return init[k] == init[l]; });
}

// State of an EM run on padded [D, thin] matrices.
template <class T>
struct Em {
  emcl::ParallelFor run;
  int64_t width, num_bases, thin, blocks;
  emcl::Settings settings;
  Scratch<T> times, factor, total, inverse, scale, length, partial;

  // times_: how often each basis counts, or null for once
  Em(emcl::ParallelFor run_, int64_t width_, int64_t num_bases_, emcl::Settings s, const T* times_ = nullptr)
      : run(run_),
        width(width_),
        num_bases(num_bases_),
        thin(thin_width<T>(num_bases_)),
        blocks(divide_up(width_, kChannelBlock)),
        settings(s),
        times(thin),
        factor(thin),
        total(thin),
        inverse(thin),
        scale(thin),
        length(thin),
        partial(blocks * thin) {
    for (int64_t k = 0; k < thin; ++k) {
      times[k] = k < num_bases ? (times_ == nullptr ? T(1) : times_[k]) : T(0);
      factor[k] = T(1) / T(settings.temperature);
      scale[k] = 0;
    }
  }

  // (GE) p = softmax(logits * factor), after `prepare(begin, end)` has made those rows of logits; inverse column sums.
  template <class F>
  void expect(const T* logits, T* p, int64_t work_per_channel, const F& prepare) {
    parallel(run, blocks, grain_of(kChannelBlock * (work_per_channel + 16 * thin)), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * kChannelBlock, end = least(width, begin + kChannelBlock);
        prepare(begin, end);
        T* sums = &partial[block * thin];
        for (int64_t k = 0; k < thin; ++k) sums[k] = 0;
        for (int64_t d = begin; d < end; ++d) {
          T* row = p + d * thin;
          softmax_row(logits + d * thin, factor.get(), times.get(), thin, row);
          for (int64_t k = 0; k < thin; k += kLanes<T>) store(sums + k, load(sums + k) + load(row + k));
        }
      }
    });
    add_up(partial.get(), blocks, thin, total.get());
    // In the padding nothing was added up, and eps may be zero.
    for (int64_t k = 0; k < thin; ++k) inverse[k] = k < num_bases ? T(1) / (T(settings.eps) + total[k]) : T(1);
  }

  // (GM) the factors that turn gram·p, or xᵀ·(x·p), into the next E-step's logits. squares: ‖x·p‖² per basis.
  void normalise(const T* squares) {
    for (int64_t k = 0; k < thin; ++k) {
      length[k] = inverse[k] * T(std::sqrt(squares[k] < T(0) ? T(0) : squares[k]));  // rounding may fall below zero
      scale[k] = k < num_bases ? T(1) / (T(settings.eps) + length[k]) : T(0);
      factor[k] = inverse[k] * scale[k] / T(settings.temperature);
    }
  }

  // (GM) product = gram·p and its squared lengths.
  void maximise(const T* gram, const T* p, T* product) {
    parallel(run, blocks, grain_of(kChannelBlock * width * thin), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * kChannelBlock, m = least(kChannelBlock, width - begin);
        thin_product<T>(m, width, gram + begin * width, width, 1, p, thin, product + begin * thin);
        T* sums = &partial[block * thin];
        for (int64_t k = 0; k < thin; ++k) sums[k] = 0;
        for (int64_t i = begin * thin; i < (begin + m) * thin; i += thin)
          for (int64_t k = 0; k < thin; k += kLanes<T>)
            store(sums + k, load(sums + k) + load(p + i + k) * load(product + i + k));
      }
    });
    add_up(partial.get(), blocks, thin, total.get());
    normalise(total.get());
  }

  // All iterations from the logits in `product`.
  void iterate(const T* gram, T* p, T* product) {
    for (int64_t t = 0; t < settings.num_iters; ++t) {
      expect(product, p, 0, nothing);
      maximise(gram, p, product);
    }
  }
};

template <class T>
void fit(emcl::ParallelFor run, const T* gram, const T* logits, int64_t width, int64_t num_bases,
         emcl::Settings settings, T* responsibilities, T* scale) {
  const Distinct<T> distinct(num_bases, [&](int64_t k, int64_t l) {
    for (int64_t d = 0; d < width; ++d)
      if (logits[d * num_bases + k] != logits[d * num_bases + l]) return false;
    return true;
  });
  Em<T> em(run, width, distinct.count, settings, distinct.times.get());
  Scratch<T> p(width * em.thin), product(width * em.thin);
  for (int64_t d = 0; d < width; ++d)
    for (int64_t k = 0; k < em.thin; ++k)
      product[d * em.thin + k] = k < distinct.count ? logits[d * num_bases + distinct.first[k]] : T(0);
  em.iterate(gram, p.get(), product.get());
  distinct.expand(p.get(), width, em.thin, em.inverse.get(), responsibilities);
  for (int64_t k = 0; k < num_bases; ++k) scale[k] = em.scale[distinct.of[k]];
}

// Runs forward again and keeps r and gram·r of every iteration, then goes back through them (docs/math.md, BE and BM).
// The gradient to gram is one product over all iterations.
template <class T>
void fit_backward(emcl::ParallelFor run, const T* gram, const T* logits, const T* d_responsibilities, const T* d_scale,
                  int64_t width, int64_t num_bases, emcl::Settings settings, T* d_gram, T* d_logits_out) {
  constexpr int V = kLanes<T>;
  constexpr int64_t W = kPanel<T>;
  Em<T> em(run, width, num_bases, settings);
  const int64_t thin = em.thin, size = width * thin, num_iters = settings.num_iters, blocks = em.blocks;
  const T temperature = T(settings.temperature);
  Scratch<T> r(num_iters * size), g(num_iters * size), inverse(num_iters * thin), scale(num_iters * thin),
      length(num_iters * thin);
  Scratch<T> first_logits(size);
  pad_thin<T>(logits, width, num_bases, thin, nullptr, first_logits.get());
  for (int64_t t = 0; t < num_iters; ++t) {
    em.expect(t ? &g[(t - 1) * size] : first_logits.get(), &r[t * size], 0, nothing);
    em.maximise(gram, &r[t * size], &g[t * size]);
    std::memcpy(&inverse[t * thin], em.inverse.get(), size_t(thin) * sizeof(T));
    std::memcpy(&scale[t * thin], em.scale.get(), size_t(thin) * sizeof(T));
    std::memcpy(&length[t * thin], em.length.get(), size_t(thin) * sizeof(T));
  }
  parallel(run, num_iters * width, grain_of(8 * thin), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
      for (int64_t k = 0; k < thin; k += V) {
        const Vec<T> factor = load(&inverse[row / width * thin + k]);
        store(&r[row * thin + k], load(&r[row * thin + k]) * factor);
        store(&g[row * thin + k], load(&g[row * thin + k]) * factor);
      }
  });

  Scratch<T> d_logits(size), d_r(size), d_g(size), all_d_g(width * num_iters * thin), d_s(thin), d_square(thin),
      dots(thin);
  std::memset(d_logits.get(), 0, size_t(size) * sizeof(T));
  for (int64_t t = num_iters - 1; t >= 0; --t) {
    const T *rt = &r[t * size], *gt = &g[t * size], *st = &scale[t * thin];
    parallel(run, blocks, grain_of(kChannelBlock * thin * 4), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        T* sums = &em.partial[block * thin];
        for (int64_t k = 0; k < thin; ++k) sums[k] = 0;
        for (int64_t d = block * kChannelBlock; d < least(width, (block + 1) * kChannelBlock); ++d)
          for (int64_t k = 0; k < thin; k += V)
            store(sums + k, load(sums + k) + load(&d_logits[d * thin + k]) * load(gt + d * thin + k));
      }
    });
    add_up(em.partial.get(), blocks, thin, d_s.get());
    for (int64_t k = 0; k < thin; ++k) {
      if (t == num_iters - 1 && k < num_bases) d_s[k] += d_scale[k];
      const T n = length[t * thin + k];
      d_square[k] = n > T(0) ? -d_s[k] * st[k] * st[k] / (2 * n) : T(0);
    }
    for (int64_t d = 0; d < width; ++d)
      for (int64_t k = 0; k < thin; k += V) {
        const int64_t i = d * thin + k;
        const Vec<T> value = load(&d_logits[i]) * load(st + k) + load(&d_square[k]) * load(rt + i);
        store(&d_g[i], value);
        store(&all_d_g[(d * num_iters + t) * thin + k], value);
      }
    parallel(run, blocks, grain_of(kChannelBlock * width * thin), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * kChannelBlock, end = least(width, begin + kChannelBlock);
        thin_product<T>(end - begin, width, gram + begin, 1, width, d_g.get(), thin, &d_r[begin * thin]);  // gramᵀ·d_g
        T* sums = &em.partial[block * thin];
        for (int64_t k = 0; k < thin; ++k) sums[k] = 0;
        for (int64_t d = begin; d < end; ++d) {
          T* row = &d_r[d * thin];
          if (t == num_iters - 1)
            for (int64_t k = 0; k < num_bases; ++k) row[k] += d_responsibilities[d * num_bases + k];
          for (int64_t k = 0; k < thin; k += V) {
            const Vec<T> value = load(row + k) + load(&d_square[k]) * load(gt + d * thin + k);
            store(row + k, value);
            store(sums + k, load(sums + k) + value * load(rt + d * thin + k));
          }
        }
      }
    });
    add_up(em.partial.get(), blocks, thin, dots.get());
    parallel(run, width, grain_of(16 * thin), [&](int64_t first, int64_t last) {
      for (int64_t d = first; d < last; ++d) {
        // p = r / inverse; d_p = (d_r - dots) * inverse; so p * d_p = r * (d_r - dots)
        Vec<T> sum = {};
        for (int64_t k = 0; k < thin; k += V) {
          const int64_t i = d * thin + k;
          const Vec<T> value = load(rt + i) * (load(&d_r[i]) - load(&dots[k]));
          store(&d_logits[i], value);
          sum += value;
        }
        const T total = sum_of_lanes<T>(sum);
        for (int64_t k = 0; k < thin; k += V) {
          const int64_t i = d * thin + k;
          store(&d_logits[i], (load(&d_logits[i]) - load(rt + i) / load(&inverse[t * thin + k]) * total) / temperature);
        }
      }
    });
  }
  unpad_thin<T>(d_logits.get(), width, num_bases, thin, nullptr, d_logits_out);

  // d_gram = Σ_t d_g_t·r_tᵀ, as one product of depth iters · thin
  const int64_t panels = divide_up(width, W), depth = num_iters * thin;
  Scratch<T> packed(panels * depth * W);
  parallel(run, panels, grain_of(depth * W), [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel)
      for (int64_t t = 0; t < num_iters; ++t)
        pack_panel<T, T>(&r[t * size], thin, width, 1, thin, panel * W, &packed[(panel * depth + t * thin) * W]);
  });
  parallel(run, blocks, grain_of(kChannelBlock * depth * width), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kChannelBlock, m = least(kChannelBlock, width - begin);
      for (int64_t panel = 0; panel < panels; ++panel)
        for (int64_t i = 0; i < m; i += kPanelRows)
          with_rows<kPanelRows>(least<int64_t>(kPanelRows, m - i), [&](auto count) {
            constexpr int MR = decltype(count)::value;
            Vec<T> acc[MR][kPanelVectors] = {};
            multiply<T, MR, kPanelVectors>(depth, &all_d_g[(begin + i) * depth], depth, 1, &packed[panel * depth * W],
                                           W, acc);
            T line[W];
            for (int row = 0; row < MR; ++row) {
              for (int j = 0; j < kPanelVectors; ++j) store(line + j * V, acc[row][j]);
              T* to = d_gram + (begin + i + row) * width + panel * W;
              for (int64_t j = 0; j < least(W, width - panel * W); ++j) to[j] = line[j];
            }
          });
    }
  });
}

}  // namespace
