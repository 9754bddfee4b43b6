// Gradients of the pooled moments and of the cosine of text with pooled frames (docs/math.md, PB).
//
// Both run back through the frame weights in the same way, and differ in what a rule makes of a tile: `through`, the
// weights [frames, texts] with which texts and frames are added to each other's gradients.
#pragma once

#include "cpu/pooled.h"

namespace {

// (PB) d_dots of one video and one vector of texts, from d_weights (before the mask), added to `through`.
template <class T>
inline void softmax_backward(int64_t F, const T* soft, const T* mask, const T* d_weights, T inverse_temperature,
                             T* through) {
  constexpr int64_t W = kPanel<T>;
  Vec<T> inner = {};
  for (int64_t i = 0; i < F; ++i) inner += load(d_weights + i * W) * mask[i] * load(soft + i * W);
  for (int64_t i = 0; i < F; ++i)
    store(through + i * W, load(through + i * W) +
                               load(soft + i * W) * (load(d_weights + i * W) * mask[i] - inner) * inverse_temperature);
}

// Rows [m, width] of texts or frames as rows of T, padded with zeros to `depth`.
template <class E, class T>
void pad_rows(const E* src, int64_t m, int64_t width, int64_t depth, T* dst) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t d = 0; d < width; ++d) dst[i * depth + d] = widen(src[i * width + d]);
    for (int64_t d = width; d < depth; ++d) dst[i * depth + d] = 0;
  }
}

// The two products that any backward ends with: d_frames += through·text and d_text += throughᵀ·frames. `through` is
// kept for as many groups at a time as fit into kHeld numbers; the order of the sums depends on the sizes alone.
//   body(first, last, through, first_row): tiles of groups [first, last) into through [rows from first_row, padded],
//       and their frames' gradients.
template <class E, class Body>
void through_weights(const Pooling<E>& pool, Compute<E>* d_text, const Body& body) {
  using T = Compute<E>;
  constexpr int64_t W = kPanel<T>;
  const int64_t width = pool.size.width, depth = round_up(width, W), padded = pool.padded;
  const int64_t group_rows = pool.videos_per_group * pool.size.frames;
  const int64_t fitting = most<int64_t>(1, kHeld / (group_rows * padded));
  const int64_t held_groups = least(pool.groups, fitting < 16 ? fitting : fitting / 16 * 16);
  const int64_t held_rows = least(held_groups * group_rows, pool.rows);
  Scratch<T> through(held_rows * padded), frame_panels(held_rows * depth);
  for (int64_t first = 0; first < pool.groups; first += held_groups) {
    const int64_t last = least(pool.groups, first + held_groups), first_row = first * group_rows;
    const int64_t rows = least(held_rows, pool.rows - first_row);
    body(first, last, through.get(), first_row);
    pack_panels<E, T>(pool.run, pool.frames + first_row * width, rows, width, width, 1, frame_panels.get());
    const int64_t blocks = divide_up(padded, kRowBlock);
    parallel(pool.run, blocks, grain_of(kRowBlock * rows * width), [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t text = block * kRowBlock, m = least(kRowBlock, padded - text);
        for (int64_t row = 0; row < rows; row += kDepth)  // a run of `through` stays in the cache for all columns
          for (int64_t column = 0; column < depth; column += W)
            panel_product<T, true>(m, least(kDepth, rows - row), &through[row * padded + text], 1, padded,
                                   &frame_panels[column * rows + row * W], d_text + text * depth + column, depth);
      }
    });
  }
}

// d_text and d_frames of (PG) and (PS)
template <class E>
void pooled_moments_backward(const Pooling<E>& pool, const Compute<E>* d_gram, const Compute<E>* d_colsum,
                             const Compute<E>* kept, E* d_text, E* d_frames) {
  using T = Compute<E>;
  constexpr int64_t W = kPanel<T>, V = kLanes<T>;
  const int64_t F = pool.size.frames, width = pool.size.width, depth = round_up(width, W), texts = pool.size.texts;
  const T inverse_temperature = T(1 / pool.size.temperature);
  Scratch<T> twice(width * depth), h(depth), text_rows(pool.padded * depth), text_panels(texts * depth),
      z_text(pool.padded * depth);
  pack_twice_symmetric(pool.run, d_gram, width, twice.get());  // panels of H = d_gram + d_gramᵀ
  for (int64_t d = 0; d < depth; ++d) h[d] = d < width ? d_colsum[d] : T(0);
  pack_panels<E, T>(pool.run, pool.text, texts, width, width, 1, text_panels.get());
  const auto times_h = [&](int64_t m, const T* rows, T* out) {  // rows·H
    for (int64_t column = 0; column < depth; column += W)
      panel_product<T>(m, width, rows, depth, 1, &twice[column * width], out + column, depth);
  };
  z_text.clear(pool.padded * depth);
  parallel(pool.run, divide_up(texts, kRowBlock), grain_of(kRowBlock * width * width),
           [&](int64_t first, int64_t last) {
             for (int64_t block = first; block < last; ++block) {
               const int64_t begin = block * kRowBlock, m = least(kRowBlock, texts - begin);
               pad_rows<E, T>(pool.text + begin * width, m, width, depth, &text_rows[begin * depth]);
               times_h(m, &text_rows[begin * depth], &z_text[begin * depth]);
               for (int64_t i = begin * depth; i < (begin + m) * depth; i += depth)
                 for (int64_t d = 0; d < depth; ++d) z_text[i + d] += h[d];
             }
           });

  const auto body = [&](int64_t first_group, int64_t last_group, T* through, int64_t first_held) {
    group_runs(pool, first_group, last_group, [&](int64_t first, int64_t last) {
      const int64_t most_rows = pool.videos_per_group * F;
      Group<E> g(pool);
      PairSums<T> pairs(pool.videos_per_group, F);
      Scratch<T> f_h(most_rows * depth), products(pool.videos_per_group * F * F), shift(most_rows),
          counts(most_rows * V);
      Scratch<T> d_weights(F * W), square(F * F), out(most_rows * W);
      for (int64_t group = first; group < last; ++group) {
        g.start(group);
        pairs.clear(g.videos);
        counts.clear(g.rows * V);
        times_h(g.rows, g.f.get(), f_h.get());
        for (int64_t i = 0; i < g.rows; ++i)
          row_products<T>(1, 1, depth, h.get(), depth, &g.f[i * depth], depth, false, &shift[i], 1);
        for (int64_t v = 0; v < g.videos; ++v) {
          T* product = &products[v * F * F];
          row_products<T>(F, F, depth, &f_h[v * F * depth], depth, &g.f[v * F * depth], depth, false, product, F);
        }
        for (int64_t panel = 0; panel < pool.panels; ++panel) {
          g.weigh_known(panel, kept);
          for (int64_t v = 0; v < g.videos; ++v) {
            const T* w = &g.weights[v * F * W];
            panel_product<T>(F, F, &products[v * F * F], F, 1, w, d_weights.get(), W);
            pairs.add(v, w, w);
            for (int64_t i = 0; i < F; ++i) {
              T* count = &counts[(v * F + i) * V];
              for (int64_t j = 0; j < W; j += V) {
                store(count, load(count) + load(w + i * W + j));
                store(&d_weights[i * W + j], load(&d_weights[i * W + j]) + shift[v * F + i]);
              }
            }
            T* tile = &out[v * F * W];
            std::memset(tile, 0, size_t(F * W) * sizeof(T));
            for (int64_t j = 0; j < W; j += V)
              softmax_backward<T>(F, &g.soft[v * F * W + j], pool.mask + g.first_row + v * F, &d_weights[j],
                                  inverse_temperature, tile + j);
          }
          for (int64_t i = 0; i < g.rows; ++i)
            std::memcpy(through + (g.first_row - first_held + i) * pool.padded + panel * W, &out[i * W],
                        size_t(W) * sizeof(T));
        }
        // Σ_a w·(v·H + h) = S·f·H + counts·h
        Scratch<T> squares(g.videos * F * F), totals(g.rows);
        for (int64_t v = 0; v < g.videos; ++v) {
          T* s = &squares[v * F * F];
          pairs.write(v, T(1), s);
          for (int64_t i = 0; i < F; ++i) {
            totals[v * F + i] = sum_of_lanes<T>(load(&counts[(v * F + i) * V]));
          }
        }
        for (int64_t column = 0; column < depth; column += W) {
          panel_product<T>(g.rows, texts, through + (g.first_row - first_held) * pool.padded, pool.padded, 1,
                           &text_panels[column * texts], out.get(), W);
          for (int64_t v = 0; v < g.videos; ++v)
            panel_product<T, true>(F, F, &squares[v * F * F], F, 1, &f_h[v * F * depth + column], &out[v * F * W], W,
                                   depth);
          for (int64_t i = 0; i < g.rows; ++i)
            for (int64_t d = column; d < least(width, column + W); ++d)
              narrow(out[i * W + d - column] + totals[i] * h[d], &d_frames[(g.first_row + i) * width + d]);
        }
      }
    });
  };
  through_weights(pool, z_text.get(), body);
  for (int64_t i = 0; i < texts; ++i)
    for (int64_t d = 0; d < width; ++d) narrow(z_text[i * depth + d], &d_text[i * width + d]);
}

// d_text, d_frames, and what the map's own gradient is made from: pull_text [A, K], pull_frames [B·F, K], the
// gradients to text·r and frames·r before they are multiplied by the correction (docs/math.md, PB).
template <class E>
void pooled_cosine_backward(const Pooling<E>& pool, const PooledMap<E>& map, const Compute<E>* d_cosine,
                            const Compute<E>* cosine, const Compute<E>* pooled_length, const Compute<E>* kept,
                            bool linear, E* d_text, E* d_frames, Compute<E>* pull_text, Compute<E>* pull_frames) {
  using T = Compute<E>;
  constexpr int64_t W = kPanel<T>, V = kLanes<T>;
  const int64_t F = pool.size.frames, width = pool.size.width, depth = round_up(width, W), texts = pool.size.texts;
  const int64_t videos = pool.size.videos, padded = pool.padded, num_bases = map.num_bases, thin = map.thin;
  const T inverse_temperature = T(1 / pool.size.temperature);
  Scratch<T> text_panels(texts * depth), z_text(padded * depth), r_panels(thin * depth);
  Scratch<T> x_text(padded * thin), x_partial(kSplits * padded * thin), text_squares(padded);
  Scratch<T> per_pair(videos * padded);  // −d_cosine·cosine
  pack_panels<E, T>(pool.run, pool.text, texts, width, width, 1, text_panels.get());
  pack_panels<T, T>(pool.run, map.r.get(), thin, width, 1, thin, r_panels.get());
  z_text.clear(padded * depth);
  x_text.clear(padded * thin);
  // c·once, the coefficients with which rᵀ is added to a gradient
  const auto once = [&](int64_t m, const T* pull, T* coefficients) {
    if (linear) return thin_product<T>(m, thin, pull, thin, 1, map.correction.get(), thin, coefficients);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t k = 0; k < thin; ++k) coefficients[i * thin + k] = pull[i * thin + k] * map.once[k];
  };

  const auto body = [&](int64_t first_group, int64_t last_group, T* through, int64_t first_held) {
    // sums over videos are kept per split; splits do not depend on the number of threads
    const int64_t count = last_group - first_group, splits = least(kSplits, count);
    x_partial.clear(splits * padded * thin);
    parallel(pool.run, splits, 1, [&](int64_t first_split, int64_t last_split) {
      const int64_t most_rows = pool.videos_per_group * F;
      Group<E> g(pool);
      MappedGroup<E> mapped(pool, map);
      PairSums<T> pairs(pool.videos_per_group, F);
      Scratch<T> tile(most_rows * W), plain(most_rows * W), pulls(F * W), products(F * W);
      Scratch<T> d_weights(F * W), given(3 * pool.videos_per_group * W);
      Scratch<T> x_frames(most_rows * thin), coefficients(most_rows * thin), squares(pool.videos_per_group * F * F);
      T *d_cos = given.get(), *cos = d_cos + pool.videos_per_group * W, *length = cos + pool.videos_per_group * W;
      for (int64_t split = first_split; split < last_split; ++split)
        for (int64_t group = first_group + split * count / splits; group < first_group + (split + 1) * count / splits;
             ++group) {
          g.start(group);
          mapped.start(g, linear ? Corrected::twice : Corrected::once);
          pairs.clear(g.videos);
          x_frames.clear(g.rows * thin);
          for (int64_t panel = 0; panel < pool.panels; ++panel) {
            const int64_t valid = g.texts_of(panel);
            g.weigh_known(panel, kept);
            mapped.template correct<true>(g, panel, g.dots.get());
            for (int64_t v = 0; v < g.videos; ++v)
              for (int64_t j = 0; j < W; ++j) {
                const int64_t from = (panel * W + j) * videos + g.first_video + v;
                d_cos[v * W + j] = j < valid ? d_cosine[from] : T(0);
                cos[v * W + j] = j < valid ? cosine[from] : T(0);
                length[v * W + j] = j < valid ? pooled_length[from] : T(1);
              }
            for (int64_t v = 0; v < g.videos; ++v) {
              const T *w = &g.weights[v * F * W], *mask = pool.mask + g.first_row + v * F;
              panel_product<T>(F, F, &mapped.grams[v * F * F], F, 1, w, products.get(), W);
              for (int64_t j = 0; j < W; j += V) {
                const Vec<T> d = load(d_cos + v * W + j), n = load(length + v * W + j);
                const Vec<T> d_numerator = d / (load(&map.text_length[panel * W + j]) * n);
                const Vec<T> square = -d * load(cos + v * W + j);
                // a length at its lower bound is a constant
                const Vec<T> d_square = n > splat(map.kTiny) ? square / (n * n * T(2)) : Vec<T>{};
                store(&per_pair[(g.first_video + v) * padded + panel * W + j], square);
                for (int64_t i = 0; i < F; ++i) {
                  const int64_t at = (v * F + i) * W + j;
                  const Vec<T> weight = load(w + i * W + j);
                  store(&d_weights[i * W + j],
                        d_numerator * load(&g.dots[at]) + T(2) * d_square * load(&products[i * W + j]));
                  store(&plain[at], d_numerator * weight);
                  store(&tile[at], d_numerator * weight);
                  store(&pulls[i * W + j], d_square * weight);
                }
                softmax_backward<T>(F, &g.soft[v * F * W + j], mask, &d_weights[j], inverse_temperature,
                                    &tile[v * F * W + j]);
              }
              pairs.add(v, pulls.get(), w);
            }
            if (thin > 0) {
              thin_product<T, true>(g.rows, valid, plain.get(), W, 1, &map.text_r[panel * W * thin], thin,
                                    x_frames.get());
              thin_product<T, true>(W, g.rows, plain.get(), 1, W, mapped.f_r.get(), thin,
                                    &x_partial[(split * padded + panel * W) * thin]);
            }
            for (int64_t i = 0; i < g.rows; ++i)
              std::memcpy(through + (g.first_row - first_held + i) * padded + panel * W, &tile[i * W],
                          size_t(W) * sizeof(T));
          }
          for (int64_t v = 0; v < g.videos; ++v) {
            pairs.write(v, T(2), &squares[v * F * F]);
            if (thin > 0)
              thin_product<T, true>(F, F, &squares[v * F * F], F, 1, &mapped.f_r[v * F * thin], thin,
                                    &x_frames[v * F * thin]);
          }
          once(g.rows, x_frames.get(), coefficients.get());
          unpad_thin<T>(x_frames.get(), g.rows, num_bases, thin, nullptr, pull_frames + g.first_row * num_bases);
          for (int64_t column = 0; column < depth; column += W) {
            T* out = tile.get();
            panel_product<T>(g.rows, texts, through + (g.first_row - first_held) * padded, padded, 1,
                             &text_panels[column * texts], out, W);
            if (thin > 0)
              panel_product<T, true>(g.rows, thin, coefficients.get(), thin, 1, &r_panels[column * thin], out, W);
            for (int64_t v = 0; v < g.videos; ++v)
              panel_product<T, true>(F, F, &squares[v * F * F], F, 1, &g.f[v * F * depth + column], out + v * F * W, W,
                                     depth);
            for (int64_t i = 0; i < g.rows; ++i)
              for (int64_t d = column; d < least(width, column + W); ++d)
                narrow(out[i * W + d - column], &d_frames[(g.first_row + i) * width + d]);
          }
        }
    });
    for (int64_t split = 0; split < splits; ++split)
      for (int64_t i = 0; i < padded * thin; ++i) x_text[i] += x_partial[split * padded * thin + i];
  };
  through_weights(pool, z_text.get(), body);

  parallel(
      pool.run, divide_up(texts, kRowBlock), grain_of(kRowBlock * width * (thin + 1)),
      [&](int64_t first, int64_t last) {
        Scratch<T> coefficients(kRowBlock * thin), line(kRowBlock * W);
        for (int64_t block = first; block < last; ++block) {
          const int64_t begin = block * kRowBlock, m = least(kRowBlock, texts - begin);
          for (int64_t i = begin; i < begin + m; ++i) {
            T sum = 0;
            for (int64_t b = 0; b < videos; ++b) sum += per_pair[b * padded + i];
            const T length = map.text_length[i];
            text_squares[i] = length > map.kTiny ? sum / (length * length) : T(0);
            for (int64_t k = 0; k < thin; ++k) x_text[i * thin + k] += text_squares[i] * map.text_r[i * thin + k];
          }
          once(m, &x_text[begin * thin], coefficients.get());
          unpad_thin<T>(&x_text[begin * thin], m, num_bases, thin, nullptr, pull_text + begin * num_bases);
          for (int64_t column = 0; column < depth; column += W) {
            for (int64_t i = 0; i < m; ++i)
              std::memcpy(&line[i * W], &z_text[(begin + i) * depth + column], size_t(W) * sizeof(T));
            if (thin > 0)
              panel_product<T, true>(m, thin, coefficients.get(), thin, 1, &r_panels[column * thin], line.get(), W);
            for (int64_t i = 0; i < m; ++i)
              for (int64_t d = column; d < least(width, column + W); ++d)
                narrow(
                    line[i * W + d - column] + text_squares[begin + i] * T(widen(pool.text[(begin + i) * width + d])),
                    &d_text[(begin + i) * width + d]);
          }
        }
      });
}

}  // namespace
