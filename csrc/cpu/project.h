// EMCL in one call: in the Gram form, or by the loop over the rows where there are few of them.
#pragma once

#include "cpu/fit.h"
#include "cpu/moments.h"
#include "cpu/reconstruct.h"

namespace {

// (G0) xᵀ·init for one start per row, in splits that do not depend on the number of threads.
template <class E>
void start_from_rows(emcl::ParallelFor run, const E* x, const Compute<E>* init, int64_t rows, int64_t width,
                     int64_t num_bases, int64_t thin, Compute<E>* logits) {
  using T = Compute<E>;
  const int64_t size = width * thin;
  const int64_t blocks = divide_up(rows, kRowBlock);
  const int64_t splits = least<int64_t>(16, blocks);
  Scratch<T> sums(splits * size);
  std::memset(sums.get(), 0, size_t(splits * size) * sizeof(T));

  parallel(run, splits, grain_of(divide_up(rows, splits) * size), [&](int64_t first, int64_t last) {
    Scratch<T> wide(kRowBlock * width), start(kRowBlock * thin);
    for (int64_t split = first; split < last; ++split)
      for (int64_t block = split * blocks / splits; block < (split + 1) * blocks / splits; ++block) {
        const int64_t begin = block * kRowBlock;
        const int64_t m = least(kRowBlock, rows - begin);
        const T* a = widened<E>(x + begin * width, m * width, wide.get());
        pad_thin<T>(init + begin * num_bases, m, num_bases, thin, nullptr, start.get());
        thin_product<T, true>(width, m, a, 1, width, start.get(), thin, &sums[split * size]);
      }
  });
  add_up(sums.get(), splits, size, logits);
}

// One problem: rows x [N, D] and their start, [K] for all rows or [N, K] with one for each. Of bases that start alike,
// EM runs on one of each.
template <class E>
class Projected {
  using T = Compute<E>;

 public:
  Projected(emcl::ParallelFor run, const E* x, const T* init, bool per_row, bool loop, int64_t rows, int64_t width,
            int64_t num_bases, emcl::Settings settings)
      : run_(run),
        x_(x),
        per_row_(per_row),
        rows_(rows),
        width_(width),
        num_bases_(num_bases),
        distinct_(per_row ? Distinct<T>(num_bases, [](int64_t, int64_t) { return false; })
                          : distinct_starts(init, num_bases)),
        em_(run, width, distinct_.count, settings, distinct_.times.get()),
        thin_(em_.thin),
        lengths_from_rows_(loop || rows <= 4 * width),
        projection_(run, x, rows, width, distinct_.count, lengths_from_rows_),
        first_starts_(distinct_.count),
        start_(per_row ? init : first_starts_.get()),
        p_(width * thin_),
        means_(thin_) {
    for (int64_t k = 0; k < distinct_.count; ++k) first_starts_[k] = init[distinct_.first[k]];
    means_.clear(thin_);
  }

  // The release's loop. Bases are kept as x·p by the projection, and their lengths as a factor per column.
  void fit_by_loop() {
    T* bases = projection_.coefficients();  // [N, thin]
    for (int64_t n = 0; n < rows_; ++n)
      for (int64_t k = 0; k < thin_; ++k)
        bases[n * thin_ + k] = k < em_.num_bases ? start_[per_row_ ? n * em_.num_bases + k : k] : T(0);

    Scratch<T> logits(width_ * thin_), wide(sizeof(E) == sizeof(T) ? 0 : rows_ * width_);
    const T* a = widened<E>(x_, rows_ * width_, wide.get());
    for (int64_t t = 0; t < em_.settings.num_iters; ++t) {
      em_.expect(logits.get(), p_.get(), rows_ * thin_, [&](int64_t begin, int64_t end) {
        thin_product<T>(end - begin, rows_, a + begin, 1, width_, bases, thin_, &logits[begin * thin_]);
      });
      em_.normalise(projection_.measure(p_.get()));
    }

    for (int64_t n = 0; n < rows_; ++n)
      for (int64_t k = 0; k < thin_; ++k) means_[k] += bases[n * thin_ + k];
  }

  void fit_by_gram() {
    Scratch<T> gram(width_ * width_), colsum(width_), product(width_ * thin_);
    moments<E>(run_, x_, rows_, width_, gram.get(), colsum.get());
    if (per_row_) {
      start_from_rows<E>(run_, x_, start_, rows_, width_, num_bases_, thin_, product.get());
    } else {
      start_from_colsum<T>(colsum.get(), start_, width_, distinct_.count, thin_, product.get());
    }

    const int64_t num_iters = em_.settings.num_iters;
    for (int64_t t = 0; t < num_iters; ++t) {
      em_.expect(product.get(), p_.get(), 0, nothing);
      if (t + 1 == num_iters && lengths_from_rows_) {
        em_.normalise(projection_.measure(p_.get()));
      } else {
        em_.maximise(gram.get(), p_.get(), product.get());
      }
    }

    for (int64_t d = 0; d < width_; ++d)
      for (int64_t k = 0; k < thin_; ++k) means_[k] += colsum[d] * p_[d * thin_ + k];
  }

  // The fitted map for all bases again, and (GI) the mean of each over the rows.
  void write_map(T* mean_bases, T* responsibilities, T* scale) const {
    distinct_.expand(p_.get(), width_, thin_, em_.inverse.get(), responsibilities);
    for (int64_t k = 0; k < num_bases_; ++k) {
      const int64_t l = distinct_.of[k];
      scale[k] = em_.scale[l];
      mean_bases[k] = means_[l] * em_.inverse[l] * scale[k] / T(rows_);
    }
  }

  // (GR) The last step: p becomes r, since both factors r of a basis without a channel would be the square of 1/eps.
  void write_rows(T residual_weight, E* y) {
    Scratch<T> factor(thin_);
    for (int64_t k = 0; k < thin_; ++k) {
      const T rows = projection_.measured() ? em_.inverse[k] : T(1);  // x·p is kept, or x·r made
      factor[k] = rows * em_.scale[k] * em_.times[k];
    }
    for (int64_t d = 0; d < width_; ++d)
      for (int64_t k = 0; k < thin_; ++k) p_[d * thin_ + k] *= em_.inverse[k];
    projection_.write(p_.get(), factor.get(), residual_weight, y);
  }

 private:
  const emcl::ParallelFor run_;
  const E* x_;
  const bool per_row_;
  const int64_t rows_, width_, num_bases_;
  const Distinct<T> distinct_;
  Em<T> em_;
  const int64_t thin_;
  // Where the rows fit into the cache, the last lengths come from x·p, which the result needs anyway.
  const bool lengths_from_rows_;
  Projection<E> projection_;
  Scratch<T> first_starts_;
  const T* start_;  // [K] or [N, K] of the distinct bases
  Scratch<T> p_;    // [D, thin]
  Scratch<T> means_;
};

template <class E>
void project(emcl::ParallelFor run, const E* x, const Compute<E>* init, bool per_row, emcl::Form form, int64_t rows,
             int64_t width, int64_t num_bases, emcl::Settings settings, Compute<E> residual_weight, E* y,
             Compute<E>* mean_bases, Compute<E>* responsibilities, Compute<E>* scale) {
  const bool loop = form == emcl::Form::loop;
  Projected<E> problem(run, x, init, per_row, loop, rows, width, num_bases, settings);
  if (loop) {
    problem.fit_by_loop();
  } else {
    problem.fit_by_gram();
  }
  problem.write_map(mean_bases, responsibilities, scale);
  problem.write_rows(residual_weight, y);
}

}  // namespace
