// Gradients of the pooled moments and of the cosine of text with pooled frames (docs/math.md, PB).
//
// Both go over the videos group by group and over the texts panel by panel. On each tile, of one group and one panel,
// they make the gradients of the frame weights and take them back through the softmax. What comes out are the weights
// with which texts and frames are added to each other's gradients: `Through`. The two differ in where the weights'
// gradients come from, and in what else reaches a frame.
#pragma once

#include "cpu/pooled.h"

namespace {

// (PB) d_dots of one video and one vector of texts, from d_weights (before the mask), added to `through`.
template <class T>
inline void softmax_backward(int64_t num_frames, const T* soft, const T* mask, const T* d_weights,
                             T inverse_temperature, T* through) {
  constexpr int64_t W = kPanel<T>;
  Vec<T> inner = {};
  for (int64_t i = 0; i < num_frames; ++i) inner += load(d_weights + i * W) * mask[i] * load(soft + i * W);
  for (int64_t i = 0; i < num_frames; ++i)
    store(through + i * W, load(through + i * W) +
                               load(soft + i * W) * (load(d_weights + i * W) * mask[i] - inner) * inverse_temperature);
}

// The weights between frames and texts, for the frames that are held at a time.
template <class T>
struct Through {
  T* weights;         // [rows, padded]
  int64_t first_row;  // of all frames, the first that is held
  int64_t padded;     // texts, to whole panels

  T* of_row(int64_t row) const { return weights + (row - first_row) * padded; }

  // Keeps the tile [rows, W] of a group of videos and a panel of texts.
  template <class E>
  void keep(const Group<E>& group, int64_t panel, const T* tile) const {
    constexpr int64_t W = kPanel<T>;
    for (int64_t i = 0; i < group.rows; ++i)
      std::memcpy(of_row(group.first_row + i) + panel * W, &tile[i * W], size_t(W) * sizeof(T));
  }

  // out [rows of the group, W] = through·text for one panel of channels.
  template <class E>
  void times_texts(const Group<E>& group, int64_t texts, const T* text_panel, T* out) const {
    panel_product<T>(group.rows, texts, of_row(group.first_row), padded, 1, text_panel, out, kPanel<T>);
  }
};

// d_text += throughᵀ·frames, for `rows` frames that are held and packed in panels of channels.
template <class E>
void add_frames_to_texts(const Pooling<E>& pool, const Through<Compute<E>>& through, int64_t rows,
                         const Compute<E>* frame_panels, Compute<E>* d_text) {
  using T = Compute<E>;
  constexpr int64_t W = kPanel<T>;
  const int64_t width = pool.size.width;
  const int64_t depth = round_up(width, W);
  const int64_t padded = pool.padded;
  const int64_t blocks = divide_up(padded, kRowBlock);
  parallel(pool.run, blocks, grain_of(kRowBlock * rows * width), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t text = block * kRowBlock;
      const int64_t m = least(kRowBlock, padded - text);
      for (int64_t row = 0; row < rows; row += kDepth)  // a run of `through` stays in the cache for all columns
        for (int64_t column = 0; column < depth; column += W)
          panel_product<T, true>(m, least(kDepth, rows - row), through.weights + row * padded + text, 1, padded,
                                 &frame_panels[column * rows + row * W], d_text + text * depth + column, depth);
    }
  });
}

// A backward over all groups: step(first, last, through) fills `through` for groups [first, last) and writes their
// frames' gradients; the texts' share is added here, unless d_text is null. As many groups are held at a time as fit
// into kHeld numbers; the order of the sums depends on the sizes alone.
template <class E, class Step>
void through_weights(const Pooling<E>& pool, Compute<E>* d_text, const Step& step) {
  using T = Compute<E>;
  constexpr int64_t W = kPanel<T>;
  const int64_t width = pool.size.width;
  const int64_t group_rows = pool.videos_per_group * pool.size.frames;
  const int64_t fitting = most<int64_t>(1, kHeld / (group_rows * pool.padded));
  const int64_t held_groups = least(pool.groups, fitting < 16 ? fitting : fitting / 16 * 16);
  const int64_t held_rows = least(held_groups * group_rows, pool.rows);
  Scratch<T> weights(held_rows * pool.padded), frame_panels(d_text ? held_rows * round_up(width, W) : 0);

  for (int64_t first = 0; first < pool.groups; first += held_groups) {
    const int64_t first_row = first * group_rows;
    const int64_t rows = least(held_rows, pool.rows - first_row);
    const Through<T> through{weights.get(), first_row, pool.padded};
    step(first, least(pool.groups, first + held_groups), through);
    if (d_text == nullptr) continue;

    pack_panels<E, T>(pool.run, pool.frames + first_row * width, rows, width, width, 1, frame_panels.get());
    add_frames_to_texts(pool, through, rows, frame_panels.get(), d_text);
  }
}

// Rows [m, width] of texts or frames as rows of T, padded with zeros to `depth`.
template <class E, class T>
void pad_rows(const E* src, int64_t m, int64_t width, int64_t depth, T* dst) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t d = 0; d < width; ++d) dst[i * depth + d] = widen(src[i * width + d]);
    for (int64_t d = width; d < depth; ++d) dst[i * depth + d] = 0;
  }
}

// out [F, W] += square·rows for each video of a group: squares [videos, F, F], and one panel of the channels of rows
// [videos, F, depth].
template <class E, class T>
void add_squares_times(const Group<E>& group, const T* squares, const T* rows, int64_t depth, T* out) {
  constexpr int64_t W = kPanel<T>;
  const int64_t F = group.F;
  for (int64_t v = 0; v < group.videos; ++v)
    panel_product<T, true>(F, F, squares + v * F * F, F, 1, rows + v * F * depth, out + v * F * W, W, depth);
}

// (PM) Backward of (PG) and (PS). A row of the moments, text or pooled, gets row·H + h, with H = d_gram + d_gramᵀ and
// h = d_colsum. A pooled row is Σ_f w_f·f: it passes that on to its weights, times f, and to its frames, times w_f.
template <class E>
class MomentsBackward {
  using T = Compute<E>;
  static constexpr int64_t W = kPanel<T>, V = kLanes<T>;

 public:
  // d_text, d_frames: out; null if not needed.
  MomentsBackward(const Pooling<E>& pool, const T* d_gram, const T* d_colsum, const T* kept, E* d_text, E* d_frames)
      : pool_(pool),
        kept_(kept),
        to_text_(d_text),
        to_frames_(d_frames),
        F(pool.size.frames),
        texts_(pool.size.texts),
        width_(pool.size.width),
        depth_(round_up(width_, W)),
        H_(width_ * depth_),
        h_(depth_),
        text_panels_(d_frames ? texts_ * depth_ : 0),
        d_text_(d_text ? pool.padded * depth_ : 0) {
    pack_twice_symmetric(pool.run, d_gram, width_, H_.get());
    for (int64_t d = 0; d < depth_; ++d) h_[d] = d < width_ ? d_colsum[d] : T(0);
    if (to_frames_) pack_panels<E, T>(pool.run, pool.text, texts_, width_, width_, 1, text_panels_.get());
    if (to_text_) d_text_.clear(pool.padded * depth_);
  }

  void run() {
    if (to_text_) texts_as_rows();
    through_weights(
        pool_, to_text_ ? d_text_.get() : nullptr,
        [&](int64_t first, int64_t last, const Through<T>& through) { frames_of_groups(first, last, through); });
    if (to_text_)
      for (int64_t i = 0; i < texts_; ++i)
        for (int64_t d = 0; d < width_; ++d) narrow(d_text_[i * depth_ + d], &to_text_[i * width_ + d]);
  }

 private:
  // What a thread keeps of the group at hand.
  struct Work {
    Group<E> group;
    PairSums<T> pairs;    // Σ over texts of w·wᵀ of each video
    Scratch<T> counts;    // [rows, V]: Σ over texts of w, in lanes
    Scratch<T> rows_H;    // [rows, depth]: f·H
    Scratch<T> products;  // [videos, F, F]: f·H·fᵀ
    Scratch<T> shift;     // [rows]: f·h
    Scratch<T> d_weights, tile, squares, totals;

    Work(const Pooling<E>& pool, int64_t frames, int64_t depth)
        : group(pool),
          pairs(pool.videos_per_group, frames),
          counts(pool.videos_per_group * frames * V),
          rows_H(pool.videos_per_group * frames * depth),
          products(pool.videos_per_group * frames * frames),
          shift(pool.videos_per_group * frames),
          d_weights(frames * W),
          tile(pool.videos_per_group * frames * W),
          squares(pool.videos_per_group * frames * frames),
          totals(pool.videos_per_group * frames) {}
  };

  // out [m, depth] = rows·H
  void times_H(int64_t m, const T* rows, T* out) const {
    for (int64_t column = 0; column < depth_; column += W)
      panel_product<T>(m, width_, rows, depth_, 1, &H_[column * width_], out + column, depth_);
  }

  // Texts are rows of the moments themselves: d_text = t·H + h.
  void texts_as_rows() {
    Scratch<T> rows(pool_.padded * depth_);
    parallel(pool_.run, divide_up(texts_, kRowBlock), grain_of(kRowBlock * width_ * width_),
             [&](int64_t first, int64_t last) {
               for (int64_t block = first; block < last; ++block) {
                 const int64_t begin = block * kRowBlock;
                 const int64_t m = least(kRowBlock, texts_ - begin);
                 pad_rows<E, T>(pool_.text + begin * width_, m, width_, depth_, &rows[begin * depth_]);
                 times_H(m, &rows[begin * depth_], &d_text_[begin * depth_]);
                 for (int64_t i = begin * depth_; i < (begin + m) * depth_; i += depth_)
                   for (int64_t d = 0; d < depth_; ++d) d_text_[i + d] += h_[d];
               }
             });
  }

  void frames_of_groups(int64_t first_group, int64_t last_group, const Through<T>& through) const {
    group_runs(pool_, first_group, last_group, [&](int64_t first, int64_t last) {
      Work work(pool_, F, depth_);
      for (int64_t group = first; group < last; ++group) {
        start(work, group);
        for (int64_t panel = 0; panel < pool_.panels; ++panel) {
          work.group.weigh_known(panel, kept_);
          for (int64_t v = 0; v < work.group.videos; ++v) back_to_dots(work, v);
          through.keep(work.group, panel, work.tile.get());
        }
        if (to_frames_) write_frames(work, through);
      }
    });
  }

  // What of a group does not depend on the texts.
  void start(Work& work, int64_t index) const {
    const Group<E>& group = work.group;
    work.group.start(index);
    work.pairs.clear(group.videos);
    work.counts.clear(group.rows * V);

    times_H(group.rows, group.f.get(), work.rows_H.get());
    for (int64_t i = 0; i < group.rows; ++i)
      row_products<T>(1, 1, depth_, h_.get(), depth_, &group.f[i * depth_], depth_, false, &work.shift[i], 1);
    for (int64_t v = 0; v < group.videos; ++v)
      row_products<T>(F, F, depth_, &work.rows_H[v * F * depth_], depth_, &group.f[v * F * depth_], depth_, false,
                      &work.products[v * F * F], F);
  }

  // The tile of one video: gradients of its weights, and these through the softmax. Adds the weights to their sums.
  void back_to_dots(Work& work, int64_t v) const {
    const Group<E>& group = work.group;
    const T* weights = &group.weights[v * F * W];
    T* d_weights = work.d_weights.get();
    panel_product<T>(F, F, &work.products[v * F * F], F, 1, weights, d_weights, W);
    if (to_frames_) work.pairs.add(v, weights, weights);
    for (int64_t i = 0; i < F; ++i) {
      T* count = &work.counts[(v * F + i) * V];
      for (int64_t j = 0; j < W; j += V) {
        store(count, load(count) + load(weights + i * W + j));
        store(d_weights + i * W + j, load(d_weights + i * W + j) + work.shift[v * F + i]);
      }
    }

    T* tile = &work.tile[v * F * W];
    std::memset(tile, 0, size_t(F * W) * sizeof(T));
    for (int64_t j = 0; j < W; j += V)
      softmax_backward<T>(F, &group.soft[v * F * W + j], group.mask_of(v), d_weights + j, T(1 / pool_.size.temperature),
                          tile + j);
  }

  // Through the dots, and Σ over texts of w·(pooled·H + h) = S·f·H + counts·h.
  void write_frames(Work& work, const Through<T>& through) const {
    const Group<E>& group = work.group;
    for (int64_t v = 0; v < group.videos; ++v) work.pairs.write(v, T(1), &work.squares[v * F * F]);
    for (int64_t i = 0; i < group.rows; ++i) work.totals[i] = sum_of_lanes<T>(load(&work.counts[i * V]));

    T* out = work.tile.get();
    for (int64_t column = 0; column < depth_; column += W) {
      through.times_texts(group, texts_, &text_panels_[column * texts_], out);
      add_squares_times(group, work.squares.get(), &work.rows_H[column], depth_, out);
      for (int64_t i = 0; i < group.rows; ++i)
        for (int64_t d = column; d < least(width_, column + W); ++d)
          narrow(out[i * W + d - column] + work.totals[i] * h_[d], &to_frames_[(group.first_row + i) * width_ + d]);
    }
  }

  const Pooling<E>& pool_;
  const T* kept_;
  E *const to_text_, *const to_frames_;  // null if not needed
  const int64_t F;                       // frames of a video
  const int64_t texts_, width_, depth_;
  Scratch<T> H_, h_;  // in panels; padded
  Scratch<T> text_panels_;
  Scratch<T> d_text_;  // [padded, depth]
};

// d_text and d_frames of (PG) and (PS); null if not needed
template <class E>
void pooled_moments_backward(const Pooling<E>& pool, const Compute<E>* d_gram, const Compute<E>* d_colsum,
                             const Compute<E>* kept, E* d_text, E* d_frames) {
  MomentsBackward<E>(pool, d_gram, d_colsum, kept, d_text, d_frames).run();
}

// What the cosine's forward gave, and the gradient that comes back to it; all [A, B].
template <class T>
struct Cosines {
  const T *d_cosine, *cosine, *length;
};

// Where the gradients go: d_text and d_frames, and what the map's own gradient is made from, pull_text [A, K] and
// pull_frames [B·F, K]. Each is null if it is not needed. A gradient takes the pull of its own side, written or not.
template <class E>
struct Targets {
  E *d_text, *d_frames;
  Compute<E>*pull_text, *pull_frames;
  bool texts() const { return d_text || pull_text; }
  bool frames() const { return d_frames || pull_frames; }
};

// (PB) Backward of (PN) and (PL). A cosine's numerator and the pooled row's length give gradients to the frame weights,
// by way of the F×F products of a video as in forward. The map's own gradient is made elsewhere, from the `pulls`: the
// gradients to text·r and frames·r before they are multiplied by the correction.
template <class E>
class CosineBackward {
  using T = Compute<E>;
  static constexpr int64_t W = kPanel<T>, V = kLanes<T>;

 public:
  CosineBackward(const Pooling<E>& pool, const PooledMap<E>& map, Cosines<T> given, const T* kept, bool linear,
                 Targets<E> to)
      : pool_(pool),
        map_(map),
        given_(given),
        to_(to),
        kept_(kept),
        linear_(linear),
        F(pool.size.frames),
        texts_(pool.size.texts),
        width_(pool.size.width),
        depth_(round_up(width_, W)),
        padded_(pool.padded),
        thin_(map.thin),
        text_panels_(to.d_frames ? texts_ * depth_ : 0),
        r_panels_(thin_ * depth_),
        d_text_(to.d_text ? padded_ * depth_ : 0),
        text_pulls_(padded_ * thin_),
        text_pulls_of_split_(kSplits * padded_ * thin_),
        shares_(pool.size.videos * padded_),
        text_squares_(padded_) {
    if (to_.d_frames) pack_panels<E, T>(pool.run, pool.text, texts_, width_, width_, 1, text_panels_.get());
    pack_panels<T, T>(pool.run, map.r.get(), thin_, width_, 1, thin_, r_panels_.get());
    if (to_.d_text) d_text_.clear(padded_ * depth_);
    text_pulls_.clear(padded_ * thin_);
  }

  void run() {
    through_weights(
        pool_, to_.d_text ? d_text_.get() : nullptr,
        [&](int64_t first, int64_t last, const Through<T>& through) { frames_of_groups(first, last, through); });
    if (!to_.texts()) return;
    parallel(pool_.run, divide_up(texts_, kRowBlock), grain_of(kRowBlock * width_ * (thin_ + 1)),
             [&](int64_t first, int64_t last) {
               Scratch<T> coefficients(kRowBlock * thin_), line(kRowBlock * W);
               for (int64_t block = first; block < last; ++block) {
                 const int64_t begin = block * kRowBlock;
                 const int64_t end = least(texts_, begin + kRowBlock);
                 finish_pulls(begin, end, coefficients.get());
                 if (to_.d_text) write_texts(begin, end, coefficients.get(), line.get());
               }
             });
  }

 private:
  // What a thread keeps of the group at hand.
  struct Work {
    Group<E> group;
    MappedGroup<E> mapped;
    PairSums<T> pairs;                    // half of Σ over texts of d_square·w·wᵀ of each video
    Scratch<T> d_cosine, cosine, length;  // [videos, W]: of the panel at hand
    Scratch<T> products;                  // [F, W]: inner products of a video's frames with what is pooled from them
    Scratch<T> d_weights, d_squares;      // [F, W]: of a video's weights, through both, and of its square length
    Scratch<T> tile, plain;               // [rows, W]: weights between frames and texts, and without the softmax
    Scratch<T> pulls, coefficients;       // [rows, thin]
    Scratch<T> squares;                   // [videos, F, F]

    Work(const Pooling<E>& pool, const PooledMap<E>& map, int64_t frames)
        : group(pool),
          mapped(pool, map),
          pairs(pool.videos_per_group, frames),
          d_cosine(pool.videos_per_group * W),
          cosine(pool.videos_per_group * W),
          length(pool.videos_per_group * W),
          products(frames * W),
          d_weights(frames * W),
          d_squares(frames * W),
          tile(pool.videos_per_group * frames * W),
          plain(pool.videos_per_group * frames * W),
          pulls(pool.videos_per_group * frames * map.thin),
          coefficients(pool.videos_per_group * frames * map.thin),
          squares(pool.videos_per_group * frames * frames) {}
  };

  // Sums over videos are kept for each split of the groups; splits do not depend on the number of threads.
  void frames_of_groups(int64_t first_group, int64_t last_group, const Through<T>& through) {
    const int64_t count = last_group - first_group;
    const int64_t splits = least(kSplits, count);
    text_pulls_of_split_.clear(splits * padded_ * thin_);
    parallel(pool_.run, splits, 1, [&](int64_t first_split, int64_t last_split) {
      Work work(pool_, map_, F);
      for (int64_t split = first_split; split < last_split; ++split) {
        const int64_t begin = first_group + split * count / splits;
        const int64_t end = first_group + (split + 1) * count / splits;
        T* text_pulls = &text_pulls_of_split_[split * padded_ * thin_];
        for (int64_t group = begin; group < end; ++group) frames_of_group(work, group, through, text_pulls);
      }
    });
    for (int64_t split = 0; split < splits; ++split)
      for (int64_t i = 0; i < padded_ * thin_; ++i) text_pulls_[i] += text_pulls_of_split_[split * padded_ * thin_ + i];
  }

  void frames_of_group(Work& work, int64_t index, const Through<T>& through, T* text_pulls) {
    Group<E>& group = work.group;
    group.start(index);
    work.mapped.start(group, linear_ ? Corrected::twice : Corrected::once);
    work.pairs.clear(group.videos);
    work.pulls.clear(group.rows * thin_);

    for (int64_t panel = 0; panel < pool_.panels; ++panel) {
      group.weigh_known(panel, kept_);
      work.mapped.template correct<true>(group, panel, group.dots.get());
      gather_cosines(work, panel);
      for (int64_t v = 0; v < group.videos; ++v) back_to_dots(work, panel, v);
      add_pulls(work, panel, text_pulls);
      through.keep(group, panel, work.tile.get());
    }

    if (!to_.frames()) return;
    finish_squares(work);
    if (to_.pull_frames)
      unpad_thin<T>(work.pulls.get(), group.rows, map_.num_bases, thin_, nullptr,
                    to_.pull_frames + group.first_row * map_.num_bases);
    if (to_.d_frames) {
      times_correction(group.rows, work.pulls.get(), work.coefficients.get());
      write_frames(work, through);
    }
  }

  // The tile's cosines and their gradients, with one text per lane; none for the padding of the last panel.
  void gather_cosines(Work& work, int64_t panel) const {
    const int64_t valid = work.group.texts_of(panel);
    for (int64_t v = 0; v < work.group.videos; ++v)
      for (int64_t j = 0; j < W; ++j) {
        const int64_t from = (panel * W + j) * pool_.size.videos + work.group.first_video + v;
        work.d_cosine[v * W + j] = j < valid ? given_.d_cosine[from] : T(0);
        work.cosine[v * W + j] = j < valid ? given_.cosine[from] : T(0);
        work.length[v * W + j] = j < valid ? given_.length[from] : T(1);
      }
  }

  // The tile of one video: gradients of its weights, and these through the softmax.
  void back_to_dots(Work& work, int64_t panel, int64_t v) {
    const T* weights = &work.group.weights[v * F * W];
    panel_product<T>(F, F, &work.mapped.grams[v * F * F], F, 1, weights, work.products.get(), W);
    for (int64_t j = 0; j < W; j += V) {
      weight_gradients(work, panel, v, j);
      softmax_backward<T>(F, &work.group.soft[v * F * W + j], work.group.mask_of(v), &work.d_weights[j],
                          T(1 / pool_.size.temperature), &work.tile[v * F * W + j]);
    }
    if (to_.frames()) work.pairs.add(v, work.d_squares.get(), weights);
  }

  // Of one vector of texts: a weight changes the cosine's numerator, and the square of the pooled row's length.
  void weight_gradients(Work& work, int64_t panel, int64_t v, int64_t j) {
    const T* weights = &work.group.weights[v * F * W];
    const Vec<T> d = load(&work.d_cosine[v * W + j]);
    const Vec<T> n = load(&work.length[v * W + j]);
    const Vec<T> d_numerator = d / (load(&map_.text_length[panel * W + j]) * n);
    const Vec<T> share = -d * load(&work.cosine[v * W + j]);
    // a length at its lower bound is a constant
    const Vec<T> d_square = n > splat(map_.kTiny) ? share / (n * n * T(2)) : Vec<T>{};
    store(&shares_[(work.group.first_video + v) * padded_ + panel * W + j], share);

    for (int64_t i = 0; i < F; ++i) {
      const int64_t at = (v * F + i) * W + j;
      const Vec<T> weight = load(weights + i * W + j);
      store(&work.d_weights[i * W + j],
            d_numerator * load(&work.group.dots[at]) + T(2) * d_square * load(&work.products[i * W + j]));
      store(&work.plain[at], d_numerator * weight);
      store(&work.tile[at], d_numerator * weight);
      store(&work.d_squares[i * W + j], d_square * weight);
    }
  }

  // What the numerators of a tile pull at the texts and frames in the bases.
  void add_pulls(Work& work, int64_t panel, T* text_pulls) const {
    if (thin_ == 0) return;
    const Group<E>& group = work.group;
    if (to_.frames())
      thin_product<T, true>(group.rows, group.texts_of(panel), work.plain.get(), W, 1, &map_.text_r[panel * W * thin_],
                            thin_, work.pulls.get());
    if (to_.texts())
      thin_product<T, true>(W, group.rows, work.plain.get(), 1, W, work.mapped.f_r.get(), thin_,
                            &text_pulls[panel * W * thin_]);
  }

  // What the lengths of a group's pooled rows give to its frames, and pull at them in the bases.
  void finish_squares(Work& work) const {
    for (int64_t v = 0; v < work.group.videos; ++v) {
      T* square = &work.squares[v * F * F];
      work.pairs.write(v, T(2), square);
      if (thin_ > 0)
        thin_product<T, true>(F, F, square, F, 1, &work.mapped.f_r[v * F * thin_], thin_, &work.pulls[v * F * thin_]);
    }
  }

  // The coefficients with which rᵀ is added to a gradient, from pulls [m, thin].
  void times_correction(int64_t m, const T* pulls, T* coefficients) const {
    if (linear_) return thin_product<T>(m, thin_, pulls, thin_, 1, map_.correction.get(), thin_, coefficients);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t k = 0; k < thin_; ++k) coefficients[i * thin_ + k] = pulls[i * thin_ + k] * map_.once[k];
  }

  // Through the dots, through the map, and through the lengths.
  void write_frames(Work& work, const Through<T>& through) const {
    const Group<E>& group = work.group;
    T* out = work.tile.get();
    for (int64_t column = 0; column < depth_; column += W) {
      through.times_texts(group, texts_, &text_panels_[column * texts_], out);
      if (thin_ > 0)
        panel_product<T, true>(group.rows, thin_, work.coefficients.get(), thin_, 1, &r_panels_[column * thin_], out,
                               W);
      add_squares_times(group, work.squares.get(), &group.f[column], depth_, out);
      for (int64_t i = 0; i < group.rows; ++i)
        for (int64_t d = column; d < least(width_, column + W); ++d)
          narrow(out[i * W + d - column], &to_.d_frames[(group.first_row + i) * width_ + d]);
    }
  }

  // The length of a text is in all of its cosines: its gradient is text_squares·text, and pulls at it in the bases.
  void finish_pulls(int64_t begin, int64_t end, T* coefficients) {
    for (int64_t i = begin; i < end; ++i) {
      T sum = 0;
      for (int64_t b = 0; b < pool_.size.videos; ++b) sum += shares_[b * padded_ + i];
      const T length = map_.text_length[i];
      text_squares_[i] = length > map_.kTiny ? sum / (length * length) : T(0);
      for (int64_t k = 0; k < thin_; ++k) text_pulls_[i * thin_ + k] += text_squares_[i] * map_.text_r[i * thin_ + k];
    }
    times_correction(end - begin, &text_pulls_[begin * thin_], coefficients);
    if (to_.pull_text)
      unpad_thin<T>(&text_pulls_[begin * thin_], end - begin, map_.num_bases, thin_, nullptr,
                    to_.pull_text + begin * map_.num_bases);
  }

  void write_texts(int64_t begin, int64_t end, const T* coefficients, T* line) const {
    const int64_t m = end - begin;
    for (int64_t column = 0; column < depth_; column += W) {
      for (int64_t i = 0; i < m; ++i)
        std::memcpy(&line[i * W], &d_text_[(begin + i) * depth_ + column], size_t(W) * sizeof(T));
      if (thin_ > 0) panel_product<T, true>(m, thin_, coefficients, thin_, 1, &r_panels_[column * thin_], line, W);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t d = column; d < least(width_, column + W); ++d) {
          const int64_t at = (begin + i) * width_ + d;
          narrow(line[i * W + d - column] + text_squares_[begin + i] * T(widen(pool_.text[at])), &to_.d_text[at]);
        }
    }
  }

  const Pooling<E>& pool_;
  const PooledMap<E>& map_;
  const Cosines<T> given_;
  const Targets<E> to_;
  const T* kept_;
  const bool linear_;  // the gradient goes through both factors of an inner product, and not through one
  const int64_t F;     // frames of a video
  const int64_t texts_, width_, depth_, padded_, thin_;
  Scratch<T> text_panels_, r_panels_;
  Scratch<T> d_text_;                            // [padded, depth]
  Scratch<T> text_pulls_, text_pulls_of_split_;  // [padded, thin], [splits, padded, thin]
  Scratch<T> shares_;                            // [B, padded]: −d_cosine·cosine
  Scratch<T> text_squares_;                      // [padded]
};

template <class E>
void pooled_cosine_backward(const Pooling<E>& pool, const PooledMap<E>& map, Cosines<Compute<E>> given,
                            const Compute<E>* kept, bool linear, Targets<E> to) {
  CosineBackward<E>(pool, map, given, kept, linear, to).run();
}

}  // namespace
