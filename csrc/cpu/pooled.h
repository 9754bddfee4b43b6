// Text-conditioned pooling of frames, its moments, and the cosine of text with pooled frames (docs/math.md, P), without
// a tensor [A, B, D].
//
// Vectors hold one number per text, so that the softmax over frames, the products with F×F numbers of a video and the
// sums over frames are the same few vector operations whatever the number of frames is. Work is done on tiles of one
// group of videos and one panel of texts; frame weights are made anew in each pass.
#pragma once

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
  const T* mask;
  int64_t rows, panels, padded, videos_per_group, groups;
  Scratch<T> text_lanes;  // [panels][D][W]

  Pooling(emcl::ParallelFor run_, const E* text_, const E* frames_, const T* mask_, const emcl::Pool& s)
      : run(run_),
        size(s),
        text(text_),
        frames(frames_),
        mask(mask_),
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
    const T inverse_temperature = T(1 / pool.size.temperature);
    for (int64_t v = 0; v < videos; ++v)
      for (int64_t j = 0; j < W; j += V) {
        const T* z = &dots[v * F * W + j];
        T *s = &soft[v * F * W + j], *w = &weights[v * F * W + j];
        const T* m = pool.mask + first_row + v * F;
        Vec<T> peak = load(z), total = {}, numerator = {};
        for (int64_t i = 1; i < F; ++i) peak = load(z + i * W) > peak ? load(z + i * W) : peak;
        for (int64_t i = 0; i < F; ++i) {
          const Vec<T> e = exp_of_nonpositive((load(z + i * W) - peak) * inverse_temperature);
          store(s + i * W, e);
          total += e;
        }
        const Vec<T> share = load(present + j) / total;
        for (int64_t i = 0; i < F; ++i) {
          const Vec<T> e = load(s + i * W) * share, weight = e * m[i];
          store(s + i * W, e);
          store(w + i * W, weight);
          numerator += weight * load(z + i * W);
        }
        store(&numerators[v * W + j], numerator);
      }
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

// Calls f(group, video of it, square [F, F], counts [F]) for every video of some groups: Σ over texts of w·wᵀ and of w.
// kept: where to keep their inner products, or null. One thread.
template <class E, class F>
void weigh_videos(const Pooling<E>& pool, int64_t first_group, int64_t last_group, Compute<E>* kept, const F& f) {
  using T = Compute<E>;
  constexpr int64_t W = kPanel<T>, V = kLanes<T>;
  const int64_t frames = pool.size.frames;
  Group<E> g(pool);
  PairSums<T> pairs(pool.videos_per_group, frames);
  Scratch<T> count_lanes(pool.videos_per_group * frames * V), square(frames * frames), counts(frames);
  for (int64_t group = first_group; group < last_group; ++group) {
    g.start(group);
    pairs.clear(g.videos);
    count_lanes.clear(g.rows * V);
    for (int64_t panel = 0; panel < pool.panels; ++panel) {
      g.weigh(panel, kept);
      for (int64_t v = 0; v < g.videos; ++v) {
        const T* w = &g.weights[v * frames * W];
        pairs.add(v, w, w);
      }
      for (int64_t i = 0; i < g.rows; ++i)
        for (int64_t j = 0; j < W; j += V)
          store(&count_lanes[i * V], load(&count_lanes[i * V]) + load(&g.weights[i * W + j]));
    }
    for (int64_t v = 0; v < g.videos; ++v) {
      pairs.write(v, T(1), square.get());
      for (int64_t i = 0; i < frames; ++i) counts[i] = sum_of_lanes<T>(load(&count_lanes[(v * frames + i) * V]));
      f(g, v, square.get(), counts.get());
    }
  }
}

// (PG), (PS): gram and colsum of all A·B + A rows [pooled; text]. Each part has its share of the groups and of the
// texts.
template <class E>
void pooled_moments(const Pooling<E>& pool, Compute<E>* gram, Compute<E>* colsum, Compute<E>* kept) {
  using T = Compute<E>;
  constexpr int64_t W = kPanel<T>;
  const int64_t F = pool.size.frames, width = pool.size.width, texts = pool.size.texts;
  const int64_t parts = least(parts_of(pool.rows + texts), pool.groups), most_rows = most(kStrip, F);
  GramSum<T> sum(parts, width);
  parallel(pool.run, parts, 1, [&](int64_t first, int64_t last) {
    const Strip<T> x(width, most_rows), y(width, most_rows);
    Scratch<T> counts(most_rows);
    for (int64_t part = first; part < last; ++part) {
      int64_t rows = 0;
      sum.start(part);
      const auto add = [&] {
        sum.add(part, rows, x, y);
        rows = 0;
      };
      weigh_videos(pool, part_begin(part, parts, pool.groups), part_begin(part + 1, parts, pool.groups), kept,
                   [&](const Group<E>& g, int64_t v, const T* square, const T* count) {
                     if (rows + F > most_rows) add();
                     std::memcpy(&counts[rows], count, size_t(F) * sizeof(T));
                     for (int64_t panel = 0; panel < x.panels; ++panel) {
                       const T* f = &g.f[v * F * g.depth + panel * W];
                       panel_product<T>(F, F, square, F, 1, f, y.at(rows, panel), W, g.depth);
                       for (int64_t i = 0; i < F; ++i)
                         std::memcpy(x.at(rows + i, panel), f + i * g.depth, size_t(W) * sizeof(T));
                     }
                     sum.add_columns(part, rows, rows + F, x, counts.get());
                     rows += F;
                   });
      add();
      const int64_t begin = part_begin(part, parts, texts), end = part_begin(part + 1, parts, texts);
      sum.add_rows(part, pool.text + begin * width, end - begin, x);
    }
  });
  sum.total(pool.run, gram, colsum);
}

// A fitted map, and what the texts are in its bases. C and `once` are the corrections of rank K to an inner product of
// two mapped vectors and of a mapped vector with another one.
template <class E>
struct PooledMap {
  using T = Compute<E>;
  int64_t num_bases, thin;
  Scratch<T> r, correction, once;   // [D, thin], [thin, thin], [thin]
  Scratch<T> text_r, text_lanes_r;  // [A, thin], [panels][thin][W]
  Scratch<T> text_length;           // [padded]

  PooledMap(const Pooling<E>& pool, const T* responsibilities, const T* scale, int64_t num_bases_, T weight)
      : num_bases(num_bases_),
        thin(thin_width<T>(num_bases_)),
        r(pool.size.width * thin),
        correction(thin * thin),
        once(thin),
        text_r(pool.size.texts * thin),
        text_lanes_r(pool.padded * thin),
        text_length(pool.padded) {
    const int64_t width = pool.size.width, texts = pool.size.texts;
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
               for (int64_t block = first; block < last; ++block) {
                 const int64_t begin = block * kRowBlock, m = least(kRowBlock, texts - begin);
                 const T* t = widened<E>(pool.text + begin * width, m * width, wide.get());
                 thin_product<T>(m, width, t, width, 1, r.get(), thin, &text_r[begin * thin]);
                 thin_product<T>(m, thin, &text_r[begin * thin], thin, 1, correction.get(), thin, mapped.get());
                 for (int64_t i = 0; i < m; ++i) {
                   Vec<T> sum = {};
                   int64_t d = 0;
                   for (; d + kLanes<T> <= width; d += kLanes<T>)
                     sum += load(t + i * width + d) * load(t + i * width + d);
                   T square = sum_of_lanes<T>(sum);
                   for (; d < width; ++d) square += t[i * width + d] * t[i * width + d];
                   for (int64_t k = 0; k < num_bases; ++k)
                     square += text_r[(begin + i) * thin + k] * mapped[i * thin + k];
                   text_length[begin + i] = std::sqrt(most<T>(square, kTiny * kTiny));
                 }
               }
             });
    if (num_bases > 0) pack_panels<T, T>(pool.run, text_r.get(), thin, texts, 1, thin, text_lanes_r.get());
  }

  static constexpr T kTiny = T(1e-12);  // shortest length that a vector is divided by
};

enum class Corrected { once, twice };  // inner products with one factor mapped, or with both

// What a group needs of the map: its frames in the bases, and its videos' F×F inner products.
template <class E>
struct MappedGroup {
  using T = Compute<E>;
  const PooledMap<E>& map;
  Scratch<T> f_r, f_corrected;  // [rows, thin]: f·r, and that times the correction
  Scratch<T> grams;             // [videos, F, F]

  MappedGroup(const Pooling<E>& pool, const PooledMap<E>& m)
      : map(m),
        f_r(pool.videos_per_group * pool.size.frames * m.thin),
        f_corrected(pool.videos_per_group * pool.size.frames * m.thin),
        grams(pool.videos_per_group * pool.size.frames * pool.size.frames) {}

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

// cosine [A, B] with rows of stride `out_row`; length: of the mapped pooled frames, likewise, or null.
template <class E>
void pooled_cosine(const Pooling<E>& pool, const PooledMap<E>& map, const Compute<E>* kept, Compute<E>* cosine,
                   Compute<E>* length, int64_t out_row) {
  using T = Compute<E>;
  constexpr int64_t W = kPanel<T>, V = kLanes<T>;
  const int64_t F = pool.size.frames;
  group_runs(pool, 0, pool.groups, [&](int64_t first, int64_t last) {
    Group<E> g(pool);
    MappedGroup<E> mapped(pool, map);
    Scratch<T> corrections(pool.videos_per_group * F * W), products(F * W);
    Scratch<T> cosines(pool.videos_per_group * W), lengths(pool.videos_per_group * W);
    for (int64_t group = first; group < last; ++group) {
      g.start(group);
      mapped.start(g, Corrected::twice);
      for (int64_t panel = 0; panel < pool.panels; ++panel) {
        g.weigh_known(panel, kept);
        mapped.template correct<false>(g, panel, corrections.get());
        for (int64_t v = 0; v < g.videos; ++v) {
          const T* w = &g.weights[v * F * W];
          panel_product<T>(F, F, &mapped.grams[v * F * F], F, 1, w, products.get(), W);
          for (int64_t j = 0; j < W; j += V) {
            Vec<T> numerator = load(&g.numerators[v * W + j]), square = {}, norm;
            for (int64_t i = 0; i < F; ++i) square += load(w + i * W + j) * load(&products[i * W + j]);
            for (int64_t i = 0; map.thin > 0 && i < F; ++i)
              numerator += load(w + i * W + j) * load(&corrections[(v * F + i) * W + j]);
            norm = square = square > splat(map.kTiny * map.kTiny) ? square : splat(map.kTiny * map.kTiny);
            for (int i = 0; i < V; ++i) norm[i] = std::sqrt(square[i]);
            store(&lengths[v * W + j], norm);
            store(&cosines[v * W + j], numerator / (load(&map.text_length[panel * W + j]) * norm));
          }
        }
        for (int64_t j = 0; j < g.texts_of(panel); ++j)
          for (int64_t v = 0; v < g.videos; ++v) {
            const int64_t to = (panel * W + j) * out_row + g.first_video + v;
            cosine[to] = cosines[v * W + j];
            if (length != nullptr) length[to] = lengths[v * W + j];
          }
      }
    }
  });
}

}  // namespace
