// Text-conditioned pooling of frames, its moments, and the cosine of text with pooled frames (docs/math.md, P), without
// a tensor [A, B, D].
//
// Vectors hold one number per text, so that the softmax over frames, the products with F×F numbers of a video and the
// sums over frames are the same few vector operations whatever the number of frames is. Work is done on tiles of one
// group of videos and one panel of texts; frame weights are made anew in each pass.
//
// W is the number of texts in a panel, V that of a vector, and F the number of frames of a video.
#pragma once

#include <limits>

#include "cpu/fit.h"
#include "cpu/moments.h"
#include "cpu/reconstruct.h"

namespace {

constexpr int64_t kGroupRows = 96;           // frames that are taken together
constexpr int64_t kSplits = 32;              // sums over videos are kept in this many parts
constexpr int64_t kHeld = int64_t(1) << 20;  // numbers that backward keeps of pairs of text and frame at a time

// The inputs of a call, and the texts as panels with one text per lane.
template <class E>
struct Pooling {
  using T = Compute<E>;
  static constexpr int64_t W = kPanel<T>;

  emcl::ParallelFor run;
  emcl::Pool size;
  const E *text, *frames;
  const T* frame_mask;
  int64_t rows;            // frames of all videos
  int64_t panels, padded;  // of texts, and texts to whole panels
  int64_t videos_per_group, groups;
  Scratch<T> text_lanes;  // [panels][D][W]

  Pooling(emcl::ParallelFor run_, const E* text_, const E* frames_, const T* frame_mask_, const emcl::Pool& s)
      : run(run_),
        size(s),
        text(text_),
        frames(frames_),
        frame_mask(frame_mask_),
        rows(s.videos * s.frames),
        panels(divide_up(s.texts, W)),
        padded(panels * W),
        videos_per_group(most<int64_t>(1, least<int64_t>(kGroupRows / s.frames, divide_up(s.videos, 16)))),
        groups(divide_up(s.videos, videos_per_group)),
        text_lanes(padded * s.width) {
    pack_panels<E, T>(run, text, s.width, s.texts, 1, s.width, text_lanes.get());
  }
};

// One group of videos: its frames as padded rows, and the tiles [rows, W] of the panel of texts at hand.
template <class E>
struct Group {
  using T = Compute<E>;
  static constexpr int64_t W = kPanel<T>, V = kLanes<T>;

  const Pooling<E>& pool;
  int64_t F, depth, first_video = 0, videos = 0, first_row = 0, rows = 0;
  Scratch<T> f;  // [rows, depth]: frames, padded with zeros to whole panels
  Scratch<T> dots, soft, weights;
  Scratch<T> numerators;  // [videos, W]: inner products of texts with pooled frames
  T present[W];           // 1 for a text, 0 for the padding of the last panel

  explicit Group(const Pooling<E>& p)
      : pool(p),
        F(p.size.frames),
        depth(round_up(p.size.width, W)),
        f(p.videos_per_group * F * depth),
        dots(p.videos_per_group * F * W),
        soft(p.videos_per_group * F * W),
        weights(p.videos_per_group * F * W),
        numerators(p.videos_per_group * W) {}

  void start(int64_t group) {
    const int64_t width = pool.size.width;
    first_video = group * pool.videos_per_group;
    videos = least(pool.videos_per_group, pool.size.videos - first_video);
    first_row = first_video * F;
    rows = videos * F;
    for (int64_t i = 0; i < rows; ++i) {
      const E* from = pool.frames + (first_row + i) * width;
      for (int64_t d = 0; d < width; ++d) f[i * depth + d] = widen(from[d]);
      for (int64_t d = width; d < depth; ++d) f[i * depth + d] = 0;
    }
  }

  int64_t texts_of(int64_t panel) const { return least(W, pool.size.texts - panel * W); }
  const T* mask_of(int64_t v) const { return pool.frame_mask + first_row + v * F; }

  // dots = frames · texts of this panel; what follows from them. kept: where to keep dots, or null.
  void weigh(int64_t panel, T* kept = nullptr) {
    panel_product<T>(rows, pool.size.width, f.get(), depth, 1, &pool.text_lanes[panel * pool.size.width * W],
                     dots.get(), W);
    for (int64_t i = 0; kept != nullptr && i < rows; ++i)
      std::memcpy(kept + kept_at(panel) + i * pool.size.texts, &dots[i * W], size_t(texts_of(panel)) * sizeof(T));
    soften(panel);
  }

  // The same with dots as an earlier pass has kept them, or, where that is null, made again.
  void weigh_known(int64_t panel, const T* kept) {
    if (kept == nullptr) return weigh(panel);
    const int64_t valid = texts_of(panel);
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(&dots[i * W], kept + kept_at(panel) + i * pool.size.texts, size_t(valid) * sizeof(T));
      for (int64_t j = valid; j < W; ++j) dots[i * W + j] = 0;
    }
    soften(panel);
  }

  // m = f·fᵀ of one video, [F, F]
  void gram_of_video(int64_t v, T* m) const {
    row_products<T>(F, F, depth, &f[v * F * depth], depth, &f[v * F * depth], depth, false, m, F);
  }

 private:
  // Where the tile of this group and panel is in [B·F, A].
  int64_t kept_at(int64_t panel) const { return first_row * pool.size.texts + panel * W; }

  // soft, weights and numerators from dots
  void soften(int64_t panel) {
    const int64_t valid = texts_of(panel);
    for (int64_t j = 0; j < W; ++j) present[j] = j < valid ? T(1) : T(0);
    for (int64_t v = 0; v < videos; ++v)
      for (int64_t j = 0; j < W; j += V) soften_video(v, j);
  }

  // (PW) The softmax over a video's frames for one vector of texts; a masked frame gets the weight 0 afterwards.
  void soften_video(int64_t v, int64_t j) {
    const T inverse_temperature = T(1 / pool.size.temperature);
    const T* z = &dots[v * F * W + j];
    const T* mask = mask_of(v);
    T* s = &soft[v * F * W + j];
    T* w = &weights[v * F * W + j];

    Vec<T> peak = load(z);
    for (int64_t i = 1; i < F; ++i) peak = load(z + i * W) > peak ? load(z + i * W) : peak;
    Vec<T> total = {};
    for (int64_t i = 0; i < F; ++i) {
      const Vec<T> e = exp_of_nonpositive((load(z + i * W) - peak) * inverse_temperature);
      store(s + i * W, e);
      total += e;
    }

    const Vec<T> share = load(present + j) / total;
    Vec<T> numerator = {};
    for (int64_t i = 0; i < F; ++i) {
      const Vec<T> e = load(s + i * W) * share;
      const Vec<T> weight = e * mask[i];
      store(s + i * W, e);
      store(w + i * W, weight);
      numerator += weight * load(z + i * W);
    }
    store(&numerators[v * W + j], numerator);
  }
};

// Σ over texts of left[i]·right[j] for the pairs i >= j of a video's frames.
template <class T>
class PairSums {
 public:
  PairSums(int64_t videos, int64_t frames)
      : F(frames), pairs_(frames * (frames + 1) / 2), sums_(videos * pairs_ * kLanes<T>) {}
  void clear(int64_t videos) { sums_.clear(videos * pairs_ * kLanes<T>); }
  void add(int64_t video, const T* left, const T* right) {
    constexpr int64_t W = kPanel<T>;
    T* sum = &sums_[video * pairs_ * kLanes<T>];
    for (int64_t i = 0; i < F; ++i)
      for (int64_t j = 0; j <= i; ++j, sum += kLanes<T>) {
        Vec<T> value = load(sum);
        for (int64_t k = 0; k < W; k += kLanes<T>) value += load(left + i * W + k) * load(right + j * W + k);
        store(sum, value);
      }
  }
  void write(int64_t video, T factor, T* square) const {  // [F, F]
    const T* sum = &sums_[video * pairs_ * kLanes<T>];
    for (int64_t i = 0; i < F; ++i)
      for (int64_t j = 0; j <= i; ++j, sum += kLanes<T>)
        square[i * F + j] = square[j * F + i] = factor * sum_of_lanes<T>(load(sum));
  }

 private:
  int64_t F, pairs_;
  Scratch<T> sums_;
};

// Calls f(first, last) for runs of the groups [first_group, last_group), each run on one thread.
template <class E, class F>
void group_runs(const Pooling<E>& pool, int64_t first_group, int64_t last_group, const F& f) {
  parallel(pool.run, last_group - first_group, 1,
           [&](int64_t first, int64_t last) { f(first_group + first, first_group + last); });
}

// Σ over texts of w·wᵀ and of w for the videos of one group at a time. One thread.
template <class E>
class WeightSums {
  using T = Compute<E>;
  static constexpr int64_t W = kPanel<T>, V = kLanes<T>;

 public:
  explicit WeightSums(const Pooling<E>& pool)
      : group(pool),
        pairs_(pool.videos_per_group, group.F),
        count_lanes_(pool.videos_per_group * group.F * V),
        square_(group.F * group.F),
        counts_(group.F) {}

  // kept: where to keep the inner products of frames and texts, or null
  void start(int64_t index, T* kept) {
    group.start(index);
    pairs_.clear(group.videos);
    count_lanes_.clear(group.rows * V);
    for (int64_t panel = 0; panel < group.pool.panels; ++panel) {
      group.weigh(panel, kept);
      for (int64_t v = 0; v < group.videos; ++v) {
        const T* weights = &group.weights[v * group.F * W];
        pairs_.add(v, weights, weights);
      }
      for (int64_t i = 0; i < group.rows; ++i)
        for (int64_t j = 0; j < W; j += V)
          store(&count_lanes_[i * V], load(&count_lanes_[i * V]) + load(&group.weights[i * W + j]));
    }
  }

  // The sums of one video of the group, until those of the next are asked for.
  const T* square_of(int64_t v) {  // [F, F]
    pairs_.write(v, T(1), square_.get());
    return square_.get();
  }
  const T* counts_of(int64_t v) {  // [F]
    for (int64_t i = 0; i < group.F; ++i) counts_[i] = sum_of_lanes<T>(load(&count_lanes_[(v * group.F + i) * V]));
    return counts_.get();
  }

  Group<E> group;

 private:
  PairSums<T> pairs_;
  Scratch<T> count_lanes_, square_, counts_;
};

// (PG), (PS) for one part of the rows, on one thread. The rows pooled from a video are not made: with S = Σ_a w·wᵀ, its
// share of the Gram matrix is fᵀ·(S·f), a product of its frames with as many rows. Both factors are collected, for as
// many videos as fit, before they are multiplied.
template <class E>
class PooledGramPart {
  using T = Compute<E>;
  static constexpr int64_t W = kPanel<T>;

 public:
  PooledGramPart(const Pooling<E>& pool, GramSum<T>& sum)
      : pool_(pool),
        sum_(sum),
        most_rows_(most(kStrip, pool.size.frames)),
        f_(pool.size.width, most_rows_),
        s_f_(pool.size.width, most_rows_),
        counts_(most_rows_),
        weights_(pool) {}

  void add(int64_t part, int64_t parts, T* kept) {
    sum_.start(part);
    const int64_t end = part_begin(part + 1, parts, pool_.groups);
    for (int64_t group = part_begin(part, parts, pool_.groups); group < end; ++group) {
      weights_.start(group, kept);
      for (int64_t v = 0; v < weights_.group.videos; ++v) collect(part, v);
    }
    multiply_collected(part);

    const int64_t texts = pool_.size.texts, width = pool_.size.width;
    const int64_t first_text = part_begin(part, parts, texts);
    sum_.add_rows(part, pool_.text + first_text * width, part_begin(part + 1, parts, texts) - first_text, f_);
  }

 private:
  void collect(int64_t part, int64_t v) {
    const Group<E>& group = weights_.group;
    const int64_t F = group.F;
    if (rows_ + F > most_rows_) multiply_collected(part);

    const T* square = weights_.square_of(v);
    std::memcpy(&counts_[rows_], weights_.counts_of(v), size_t(F) * sizeof(T));
    for (int64_t panel = 0; panel < f_.panels; ++panel) {
      const T* f = &group.f[v * F * group.depth + panel * W];
      panel_product<T>(F, F, square, F, 1, f, s_f_.at(rows_, panel), W, group.depth);
      for (int64_t i = 0; i < F; ++i) std::memcpy(f_.at(rows_ + i, panel), f + i * group.depth, size_t(W) * sizeof(T));
    }
    sum_.add_columns(part, rows_, rows_ + F, f_, counts_.get());
    rows_ += F;
  }

  void multiply_collected(int64_t part) {
    sum_.add(part, rows_, f_, s_f_);
    rows_ = 0;
  }

  const Pooling<E>& pool_;
  GramSum<T>& sum_;
  int64_t most_rows_, rows_ = 0;
  const Strip<T> f_, s_f_;  // frames, and S·f
  Scratch<T> counts_;
  WeightSums<E> weights_;
};

// (PG), (PS): gram and colsum of all A·B + A rows [pooled; text]. Each part has its share of the groups and of the
// texts.
template <class E>
void pooled_moments(const Pooling<E>& pool, Compute<E>* gram, Compute<E>* colsum, Compute<E>* kept) {
  using T = Compute<E>;
  const int64_t parts = least(parts_of(pool.rows + pool.size.texts), pool.groups);
  GramSum<T> sum(parts, pool.size.width);
  parallel(pool.run, parts, 1, [&](int64_t first, int64_t last) {
    PooledGramPart<E> part_of(pool, sum);
    for (int64_t part = first; part < last; ++part) part_of.add(part, parts, kept);
  });
  sum.total(pool.run, gram, colsum);
}

// A length from its square. Of a square that is no number, also because it overflows, there is none.
template <class T>
inline T length_of_square(T square) {
  constexpr T tiny = T(1e-12);
  if (!(square <= std::numeric_limits<T>::max())) return std::numeric_limits<T>::quiet_NaN();
  return std::sqrt(most<T>(square, tiny * tiny));
}

// A fitted map, and what the texts are in its bases. C and `once` are the corrections of rank K to an inner product of
// two mapped vectors and of a mapped vector with another one.
template <class E>
struct PooledMap {
  using T = Compute<E>;
  int64_t num_bases, thin;
  T weight;
  Scratch<T> r, correction, once;   // [D, thin], [thin, thin], [thin]
  Scratch<T> text_r, text_lanes_r;  // [A, thin], [panels][thin][W]
  Scratch<T> text_length;           // [padded]

  PooledMap(const Pooling<E>& pool, const T* responsibilities, const T* scale, int64_t num_bases_, T weight_)
      : num_bases(num_bases_),
        thin(thin_width<T>(num_bases_)),
        weight(weight_),
        r(pool.size.width * thin),
        correction(thin * thin),
        once(thin),
        text_r(pool.size.texts * thin),
        text_lanes_r(pool.padded * thin),
        text_length(pool.padded) {
    const int64_t width = pool.size.width;
    const int64_t texts = pool.size.texts;

    // (PC) C from rᵀr, in its place
    pad_thin<T>(responsibilities, width, num_bases, thin, nullptr, r.get());
    thin_product<T>(thin, width, r.get(), 1, thin, r.get(), thin, correction.get());
    for (int64_t k = 0; k < thin; ++k) {
      const T left = k < num_bases ? weight * scale[k] : T(0);
      once[k] = left;
      for (int64_t l = 0; l < thin; ++l) {
        T& c = correction[k * thin + l];
        c = l < num_bases ? left * c * weight * scale[l] + (k == l ? 2 * left : T(0)) : T(0);
      }
    }

    for (int64_t i = texts; i < pool.padded; ++i) text_length[i] = 1;
    parallel(pool.run, divide_up(texts, kRowBlock), grain_of(kRowBlock * width * (thin + 1)),
             [&](int64_t first, int64_t last) {
               Scratch<T> wide(kRowBlock * width), mapped(kRowBlock * thin);
               for (int64_t block = first; block < last; ++block)
                 map_texts(pool, block * kRowBlock, least(texts, (block + 1) * kRowBlock), wide.get(), mapped.get());
             });
    if (num_bases > 0) pack_panels<T, T>(pool.run, text_r.get(), thin, texts, 1, thin, text_lanes_r.get());
  }

  static constexpr T kTiny = T(1e-12);  // shortest length that a vector is divided by
  // Least share of its terms that the square of a row's length is trusted at: see docs/math.md, PL.
  static constexpr T kTrusted = T(1) / 128;

  // What the map adds to channel d of a row: its weighted coefficients, times rᵀ.
  T added(const T* coefficients, int64_t d) const {
    T sum = 0;
    for (int64_t k = 0; k < num_bases; ++k) sum += coefficients[k] * once[k] * r[d * thin + k];
    return sum;
  }

 private:
  // Texts in the bases, and their lengths after the map. wide, mapped: memory for the block.
  void map_texts(const Pooling<E>& pool, int64_t begin, int64_t end, T* wide, T* mapped) {
    const int64_t width = pool.size.width;
    const int64_t m = end - begin;
    const T* t = widened<E>(pool.text + begin * width, m * width, wide);
    thin_product<T>(m, width, t, width, 1, r.get(), thin, &text_r[begin * thin]);
    thin_product<T>(m, thin, &text_r[begin * thin], thin, 1, correction.get(), thin, mapped);
    for (int64_t i = 0; i < m; ++i) {
      const T plain = square_of(t + i * width, width);
      T square = plain, terms = plain;
      for (int64_t k = 0; k < num_bases; ++k) {
        const T term = text_r[(begin + i) * thin + k] * mapped[i * thin + k];
        square += term;
        terms += std::abs(term);
      }
      const bool lost = weight < 0 && !(square >= kTrusted * terms);
      if (lost) square = square_of_mapped(t + i * width, &text_r[(begin + i) * thin], width);
      text_length[begin + i] = length_of_square<T>(square);
    }
  }

  // With a weight below zero text and reconstruction may cancel, and then the quadratic form is lost in rounding.
  T square_of_mapped(const T* t, const T* coefficients, int64_t width) const {
    T square = 0;
    for (int64_t d = 0; d < width; ++d) {
      const T x = t[d] + added(coefficients, d);
      square += x * x;
    }
    return square;
  }

  static T square_of(const T* t, int64_t width) {
    Vec<T> sum = {};
    int64_t d = 0;
    for (; d + kLanes<T> <= width; d += kLanes<T>) sum += load(t + d) * load(t + d);
    T square = sum_of_lanes<T>(sum);
    for (; d < width; ++d) square += t[d] * t[d];
    return square;
  }
};

enum class Corrected { once, twice };  // inner products with one factor mapped, or with both

// What a group needs of the map: its frames in the bases, and its videos' F×F inner products.
template <class E>
struct MappedGroup {
  using T = Compute<E>;
  const PooledMap<E>& map;
  Scratch<T> f_r, f_corrected;  // [rows, thin]: f·r, and that times the correction
  Scratch<T> grams;             // [videos, F, F]
  Scratch<T> squares;           // [rows]: of the frames before the map

  MappedGroup(const Pooling<E>& pool, const PooledMap<E>& m)
      : map(m),
        f_r(pool.videos_per_group * pool.size.frames * m.thin),
        f_corrected(pool.videos_per_group * pool.size.frames * m.thin),
        grams(pool.videos_per_group * pool.size.frames * pool.size.frames),
        squares(pool.videos_per_group * pool.size.frames) {}

  void start(const Group<E>& g, Corrected how) {
    const int64_t F = g.F, thin = map.thin;
    if (thin > 0) {
      thin_product<T>(g.rows, g.pool.size.width, g.f.get(), g.depth, 1, map.r.get(), thin, f_r.get());
      if (how == Corrected::twice) {
        thin_product<T>(g.rows, thin, f_r.get(), thin, 1, map.correction.get(), thin, f_corrected.get());
      } else {
        for (int64_t i = 0; i < g.rows; ++i)
          for (int64_t k = 0; k < thin; ++k) f_corrected[i * thin + k] = f_r[i * thin + k] * map.once[k];
      }
    }
    for (int64_t v = 0; v < g.videos; ++v) {
      g.gram_of_video(v, &grams[v * F * F]);
      for (int64_t i = 0; i < F; ++i) squares[v * F + i] = grams[(v * F + i) * F + i];
      if (thin > 0)
        row_products<T>(F, F, thin, &f_corrected[v * F * thin], thin, &f_r[v * F * thin], thin, true, &grams[v * F * F],
                        F);
    }
  }

  // The correction to the inner products of frames and texts, added to or written over them.
  template <bool ADD>
  void correct(const Group<E>& g, int64_t panel, T* out) const {
    if (map.thin > 0)
      panel_product<T, ADD>(g.rows, map.thin, f_corrected.get(), map.thin, 1, &map.text_lanes_r[panel * map.thin * g.W],
                            out, g.W);
  }
};

// Cosines of one group of videos with one panel of texts. One thread.
template <class E>
class CosineTile {
  using T = Compute<E>;
  using Mask = typename VecOf<T>::mask;
  static constexpr int64_t W = kPanel<T>, V = kLanes<T>;
  static constexpr T kTrusted = PooledMap<E>::kTrusted;
  static constexpr T kLost = T(-1);  // in the place of a length that is still to be made

 public:
  CosineTile(const Pooling<E>& pool, const PooledMap<E>& map)
      : group_(pool),
        mapped_(pool, map),
        corrections_(pool.videos_per_group * group_.F * W),
        products_(group_.F * W),
        cosines_(pool.videos_per_group * W),
        lengths_(pool.videos_per_group * W),
        reaches_(pool.videos_per_group * group_.F),
        least_(pool.videos_per_group) {}

  void start(int64_t group) {
    group_.start(group);
    mapped_.start(group_, Corrected::twice);
    for (int64_t v = 0; v < group_.videos; ++v) find_reach(v);
  }

  void fill(int64_t panel, const T* kept) {
    const int64_t F = group_.F;
    group_.weigh_known(panel, kept);
    mapped_.template correct<false>(group_, panel, corrections_.get());
    Mask lost = {};
    for (int64_t v = 0; v < group_.videos; ++v) {
      panel_product<T>(F, F, &mapped_.grams[v * F * F], F, 1, &group_.weights[v * F * W], products_.get(), W);
      for (int64_t j = 0; j < W; j += V) lost |= fill_video(panel, v, j);
    }
    if (any(lost)) make_lost_rows(panel);
  }

  // Into cosine [A, B] with rows of stride `out_row`, and length likewise unless it is null.
  void write(int64_t panel, T* cosine, T* length, int64_t out_row) const {
    for (int64_t j = 0; j < group_.texts_of(panel); ++j)
      for (int64_t v = 0; v < group_.videos; ++v) {
        const int64_t to = (panel * W + j) * out_row + group_.first_video + v;
        cosine[to] = cosines_[v * W + j];
        if (length != nullptr) length[to] = lengths_[v * W + j];
      }
  }

 private:
  // One video and one vector of texts: |Σ_f w_f·f|² is wᵀ·(F×F products)·w. Returns where that is lost in rounding.
  Mask fill_video(int64_t panel, int64_t v, int64_t j) {
    const PooledMap<E>& map = mapped_.map;
    const int64_t F = group_.F;
    const T* w = &group_.weights[v * F * W];
    Vec<T> square = {};
    for (int64_t i = 0; i < F; ++i) square += load(w + i * W + j) * load(&products_[i * W + j]);
    Vec<T> numerator = load(&group_.numerators[v * W + j]);
    for (int64_t i = 0; map.thin > 0 && i < F; ++i)
      numerator += load(w + i * W + j) * load(&corrections_[(v * F + i) * W + j]);

    // The reach of a row is only made where the row is short, which a mask over most of its frames makes it too.
    const Vec<T> zero = {};
    Mask lost = !(square - least_[v] >= zero);
    if (any(lost)) {
      Vec<T> reach = {};
      for (int64_t i = 0; i < F; ++i) {
        const Vec<T> x = load(w + i * W + j);
        reach += (x < zero ? -x : x) * reaches_[v * F + i];
      }
      lost = !(square - kTrusted * reach * reach >= zero);
    }

    const Vec<T> least_square = splat(map.kTiny * map.kTiny);
    square = square > least_square ? square : least_square;
    Vec<T> norm = square;
    for (int i = 0; i < V; ++i) norm[i] = std::sqrt(square[i]);
    store(&lengths_[v * W + j], lost ? splat(kLost) : norm);
    store(&cosines_[v * W + j], within_one(numerator / (load(&map.text_length[panel * W + j]) * norm)));
    return lost;
  }

  // Rounding may put a cosine outside of [-1, 1], as little as that is; NaN stays NaN.
  static Vec<T> within_one(Vec<T> cosine) {
    const Vec<T> one = splat(T(1));
    cosine = cosine > one ? one : cosine;
    return cosine < -one ? -one : cosine;
  }

  // How long what a frame gives to a pooled row is at most, and the square of a row that nothing can have been lost of.
  // The weights of a video add up to one before the mask.
  void find_reach(int64_t v) {
    T most_square = 0;
    for (int64_t i = 0; i < group_.F; ++i) {
      const int64_t row = v * group_.F + i;
      const T square = most(mapped_.squares[row], mapped_.grams[row * group_.F + i]), mask = group_.mask_of(v)[i];
      reaches_[row] = std::sqrt(square);
      most_square = square * mask * mask > most_square ? square * mask * mask : most_square;
    }
    least_[v] = kTrusted * most_square;
  }

  // The rows of this panel whose squares are lost in rounding, one after the other.
  __attribute__((noinline, cold)) void make_lost_rows(int64_t panel) {
    Scratch<T> row(group_.pool.size.width), coefficients(most<int64_t>(mapped_.map.thin, 1));
    for (int64_t v = 0; v < group_.videos; ++v)
      for (int64_t j = 0; j < group_.texts_of(panel); ++j) {
        const T* w = &group_.weights[v * group_.F * W + j];
        if (lengths_[v * W + j] == kLost) make_row(panel, v, j, w, row.get(), coefficients.get());
      }
  }

  // The pooled row of video v for text j of the panel, and the cosine from it. row, coefficients: memory.
  void make_row(int64_t panel, int64_t v, int64_t j, const T* w, T* row, T* coefficients) {
    const PooledMap<E>& map = mapped_.map;
    const int64_t width = group_.pool.size.width, text = panel * W + j;
    const T* f = &group_.f[v * group_.F * group_.depth];
    for (int64_t d = 0; d < width; ++d) row[d] = 0;
    for (int64_t i = 0; i < group_.F; ++i)
      for (int64_t d = 0; d < width; ++d) row[d] += w[i * W] * f[i * group_.depth + d];

    for (int64_t k = 0; k < map.num_bases; ++k) {
      coefficients[k] = 0;
      for (int64_t d = 0; d < width; ++d) coefficients[k] += row[d] * map.r[d * map.thin + k];
    }
    T square = 0, product = 0;
    for (int64_t d = 0; d < width; ++d) {
      const T x = row[d] + map.added(coefficients, d);
      const T t = widen(group_.pool.text[text * width + d]) + map.added(&map.text_r[text * map.thin], d);
      square += x * x;
      product += x * t;
    }
    const T length = length_of_square<T>(square);
    const T cosine = product / (map.text_length[text] * length);
    lengths_[v * W + j] = length;
    cosines_[v * W + j] = cosine > 1 ? T(1) : cosine < -1 ? T(-1) : cosine;
  }

  Group<E> group_;
  MappedGroup<E> mapped_;
  Scratch<T> corrections_, products_;  // [rows, W], [F, W] of one video
  Scratch<T> cosines_, lengths_;       // [videos, W]
  Scratch<T> reaches_, least_;         // [rows], [videos]: see find_reach
};

// cosine [A, B] with rows of stride `out_row`; length: of the mapped pooled frames, likewise, or null.
template <class E>
void pooled_cosine(const Pooling<E>& pool, const PooledMap<E>& map, const Compute<E>* kept, Compute<E>* cosine,
                   Compute<E>* length, int64_t out_row) {
  group_runs(pool, 0, pool.groups, [&](int64_t first, int64_t last) {
    CosineTile<E> tile(pool, map);
    for (int64_t group = first; group < last; ++group) {
      tile.start(group);
      for (int64_t panel = 0; panel < pool.panels; ++panel) {
        tile.fill(panel, kept);
        tile.write(panel, cosine, length, out_row);
      }
    }
  });
}

}  // namespace
