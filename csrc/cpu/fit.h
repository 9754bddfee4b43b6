// The whole EM loop on the Gram matrix, in one call, and its backward.
//
// The responsibilities are kept as p, before they are divided by their column sums: the division is a factor per
// column, and a factor per column passes through gram·p. So an iteration is two parallel steps: a softmax over rows of
// [D, K], and gram·p with the squared lengths.
#pragma once

#include <limits>

#include "cpu/tile.h"

namespace {

// p[k] = softmax of row[k] * factor[k], where basis k counts times[k] times; zero where that is zero, in the padding.
// `row` and `p` may be the same.
//
// The products lie in p until their largest is known. Made anew, they would be fused with the difference and keep more
// digits than the largest of them has, which from 1e9 on leaves nothing of the difference but rounding.
template <class T>
inline void softmax_row(const T* row, const T* factor, const T* times, int64_t thin, T* p) {
  constexpr int V = kLanes<T>;
  Vec<T> peak = splat(T(-INFINITY));
  for (int64_t k = 0; k < thin; k += V) {
    const Vec<T> z = load(row + k) * load(factor + k);
    const Vec<T> inside = load(times + k) > splat(T(0)) ? z : splat(T(-INFINITY));
    store(p + k, z);
    peak = inside > peak ? inside : peak;
  }
  const T top = most_of_lanes<T>(peak);
  Vec<T> sum = {};
  for (int64_t k = 0; k < thin; k += V) {
    const Vec<T> z = load(p + k) - top;
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
    constexpr T kLargest = std::numeric_limits<T>::max();
    for (int64_t k = 0; k < thin; ++k) {
      length[k] = inverse[k] * T(std::sqrt(squares[k] < T(0) ? T(0) : squares[k]));  // rounding may fall below zero
      // A length that overflows is NaN, as its scale would be zero, and what is zero looks like a fit.
      length[k] += length[k] - length[k];
      scale[k] = k < num_bases ? T(1) / (T(settings.eps) + length[k]) : T(0);
      // Of a basis that has no channel, both are as large as eps allows, and what they multiply is zero.
      const T both = inverse[k] * scale[k] / T(settings.temperature);
      factor[k] = both > kLargest ? kLargest : both;
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

// (GE), (GM) All of EM from logits [D, K]; of bases that start alike, EM runs on one of each.
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
class FitBackward {
  static constexpr int V = kLanes<T>;
  static constexpr int64_t W = kPanel<T>;

 public:
  FitBackward(emcl::ParallelFor run, const T* gram, int64_t width, int64_t num_bases, emcl::Settings settings)
      : run_(run),
        gram_(gram),
        width_(width),
        num_bases_(num_bases),
        em_(run, width, num_bases, settings),
        thin_(em_.thin),
        size_(width * thin_),
        num_iters_(settings.num_iters),
        r_(num_iters_ * size_),
        gram_r_(num_iters_ * size_),
        inverse_(num_iters_ * thin_),
        scale_(num_iters_ * thin_),
        length_(num_iters_ * thin_),
        d_logits_(size_),
        d_r_(size_),
        d_gram_r_(size_),
        all_d_gram_r_(width * num_iters_ * thin_),
        d_scale_(thin_),
        d_square_(thin_),
        dots_(thin_) {}

  void run(const T* logits, const T* d_responsibilities, const T* d_scale, T* d_gram, T* d_logits) {
    forward(logits);
    d_logits_.clear(size_);
    for (int64_t t = num_iters_ - 1; t >= 0; --t) {
      const bool last = t == num_iters_ - 1;
      gradients_of_lengths(t, last ? d_scale : nullptr);
      gradient_of_gram_r(t);
      gradient_of_r(t, last ? d_responsibilities : nullptr);
      gradient_of_logits(t);
    }
    unpad_thin<T>(d_logits_.get(), width_, num_bases_, thin_, nullptr, d_logits);
    write_d_gram(d_gram);
  }

 private:
  void forward(const T* logits) {
    Scratch<T> first_logits(size_);
    pad_thin<T>(logits, width_, num_bases_, thin_, nullptr, first_logits.get());
    for (int64_t t = 0; t < num_iters_; ++t) {
      em_.expect(t ? &gram_r_[(t - 1) * size_] : first_logits.get(), &r_[t * size_], 0, nothing);
      em_.maximise(gram_, &r_[t * size_], &gram_r_[t * size_]);
      std::memcpy(&inverse_[t * thin_], em_.inverse.get(), size_t(thin_) * sizeof(T));
      std::memcpy(&scale_[t * thin_], em_.scale.get(), size_t(thin_) * sizeof(T));
      std::memcpy(&length_[t * thin_], em_.length.get(), size_t(thin_) * sizeof(T));
    }

    // Until here both were of p, which is r times the column sums.
    parallel(run_, num_iters_ * width_, grain_of(8 * thin_), [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row)
        for (int64_t k = 0; k < thin_; k += V) {
          const Vec<T> factor = load(&inverse_[row / width_ * thin_ + k]);
          store(&r_[row * thin_ + k], load(&r_[row * thin_ + k]) * factor);
          store(&gram_r_[row * thin_ + k], load(&gram_r_[row * thin_ + k]) * factor);
        }
    });
  }

  // The logits after iteration t are gram·r·scale. given: the gradient to the scale from outside, or null.
  void gradients_of_lengths(int64_t t, const T* given) {
    const T* gram_r = &gram_r_[t * size_];
    const T* scale = &scale_[t * thin_];
    parallel(run_, em_.blocks, grain_of(kChannelBlock * thin_ * 4), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        T* sums = &em_.partial[block * thin_];
        for (int64_t k = 0; k < thin_; ++k) sums[k] = 0;
        for (int64_t d = block * kChannelBlock; d < least(width_, (block + 1) * kChannelBlock); ++d)
          for (int64_t k = 0; k < thin_; k += V)
            store(sums + k, load(sums + k) + load(&d_logits_[d * thin_ + k]) * load(gram_r + d * thin_ + k));
      }
    });
    add_up(em_.partial.get(), em_.blocks, thin_, d_scale_.get());
    for (int64_t k = 0; k < thin_; ++k) {
      if (given != nullptr && k < num_bases_) d_scale_[k] += given[k];
      const T n = length_[t * thin_ + k];
      d_square_[k] = n > T(0) ? -d_scale_[k] * scale[k] * scale[k] / (2 * n) : T(0);
    }
  }

  void gradient_of_gram_r(int64_t t) {
    const T* r = &r_[t * size_];
    const T* scale = &scale_[t * thin_];
    for (int64_t d = 0; d < width_; ++d)
      for (int64_t k = 0; k < thin_; k += V) {
        const int64_t i = d * thin_ + k;
        const Vec<T> value = load(&d_logits_[i]) * load(scale + k) + load(&d_square_[k]) * load(r + i);
        store(&d_gram_r_[i], value);
        store(&all_d_gram_r_[(d * num_iters_ + t) * thin_ + k], value);
      }
  }

  // d_r, and its inner products with r per basis. given: the gradient to the responsibilities from outside, or null.
  void gradient_of_r(int64_t t, const T* given) {
    const T* r = &r_[t * size_];
    const T* gram_r = &gram_r_[t * size_];
    parallel(run_, em_.blocks, grain_of(kChannelBlock * width_ * thin_), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * kChannelBlock;
        const int64_t end = least(width_, begin + kChannelBlock);
        thin_product<T>(end - begin, width_, gram_ + begin, 1, width_, d_gram_r_.get(), thin_,
                        &d_r_[begin * thin_]);  // gramᵀ·d_gram_r
        T* sums = &em_.partial[block * thin_];
        for (int64_t k = 0; k < thin_; ++k) sums[k] = 0;
        for (int64_t d = begin; d < end; ++d) {
          T* row = &d_r_[d * thin_];
          if (given != nullptr)
            for (int64_t k = 0; k < num_bases_; ++k) row[k] += given[d * num_bases_ + k];
          for (int64_t k = 0; k < thin_; k += V) {
            const Vec<T> value = load(row + k) + load(&d_square_[k]) * load(gram_r + d * thin_ + k);
            store(row + k, value);
            store(sums + k, load(sums + k) + value * load(r + d * thin_ + k));
          }
        }
      }
    });
    add_up(em_.partial.get(), em_.blocks, thin_, dots_.get());
  }

  // Through the division by the column sums, and the softmax.
  void gradient_of_logits(int64_t t) {
    const T* r = &r_[t * size_];
    const T* inverse = &inverse_[t * thin_];
    const T temperature = T(em_.settings.temperature);
    parallel(run_, width_, grain_of(16 * thin_), [&](int64_t first, int64_t last) {
      for (int64_t d = first; d < last; ++d) {
        // p = r / inverse; d_p = (d_r - dots) * inverse; so p * d_p = r * (d_r - dots)
        Vec<T> sum = {};
        for (int64_t k = 0; k < thin_; k += V) {
          const int64_t i = d * thin_ + k;
          const Vec<T> value = load(r + i) * (load(&d_r_[i]) - load(&dots_[k]));
          store(&d_logits_[i], value);
          sum += value;
        }
        const T total = sum_of_lanes<T>(sum);
        for (int64_t k = 0; k < thin_; k += V) {
          const int64_t i = d * thin_ + k;
          store(&d_logits_[i], (load(&d_logits_[i]) - load(r + i) / load(inverse + k) * total) / temperature);
        }
      }
    });
  }

  // d_gram = Σ_t d_gram_r_t·r_tᵀ, as one product of depth num_iters · thin
  void write_d_gram(T* d_gram) const {
    const int64_t panels = divide_up(width_, W);
    const int64_t depth = num_iters_ * thin_;
    Scratch<T> packed(panels * depth * W);
    parallel(run_, panels, grain_of(depth * W), [&](int64_t first, int64_t last) {
      for (int64_t panel = first; panel < last; ++panel)
        for (int64_t t = 0; t < num_iters_; ++t)
          pack_panel<T, T>(&r_[t * size_], thin_, width_, 1, thin_, panel * W,
                           &packed[(panel * depth + t * thin_) * W]);
    });
    parallel(run_, em_.blocks, grain_of(kChannelBlock * depth * width_), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * kChannelBlock;
        const int64_t end = least(width_, begin + kChannelBlock);
        for (int64_t panel = 0; panel < panels; ++panel)
          for (int64_t row = begin; row < end; row += kPanelRows)
            write_tile(row, least<int64_t>(kPanelRows, end - row), panel, depth, &packed[panel * depth * W], d_gram);
      }
    });
  }

  void write_tile(int64_t row, int64_t rows, int64_t panel, int64_t depth, const T* packed, T* d_gram) const {
    with_rows<kPanelRows>(rows, [&](auto count) {
      constexpr int MR = decltype(count)::value;
      Vec<T> acc[MR][kPanelVectors] = {};
      multiply<T, MR, kPanelVectors>(depth, &all_d_gram_r_[row * depth], depth, 1, packed, W, acc);
      T line[W];
      for (int i = 0; i < MR; ++i) {
        for (int j = 0; j < kPanelVectors; ++j) store(line + j * V, acc[i][j]);
        T* to = d_gram + (row + i) * width_ + panel * W;
        for (int64_t j = 0; j < least(W, width_ - panel * W); ++j) to[j] = line[j];
      }
    });
  }

  const emcl::ParallelFor run_;
  const T* gram_;
  const int64_t width_, num_bases_;
  Em<T> em_;
  const int64_t thin_, size_, num_iters_;
  Scratch<T> r_, gram_r_;                 // [iterations, D, thin]
  Scratch<T> inverse_, scale_, length_;   // [iterations, thin]
  Scratch<T> d_logits_, d_r_, d_gram_r_;  // [D, thin] of the iteration at hand
  Scratch<T> all_d_gram_r_;               // [D, iterations, thin]
  Scratch<T> d_scale_, d_square_, dots_;  // [thin]; d_square: to the squared length
};

template <class T>
void fit_backward(emcl::ParallelFor run, const T* gram, const T* logits, const T* d_responsibilities, const T* d_scale,
                  int64_t width, int64_t num_bases, emcl::Settings settings, T* d_gram, T* d_logits) {
  FitBackward<T>(run, gram, width, num_bases, settings).run(logits, d_responsibilities, d_scale, d_gram, d_logits);
}

}  // namespace
