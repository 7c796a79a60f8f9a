/* Softmax statistics and dlogits of fp32 logits on a CPU with AVX-512: of a row, which the second-level cache holds, its
   maximum first and then the rest in one pass. Built and called by avx512.py. */

#include <stdint.h>

#include "exponential.h"

enum { PIECE = 32 * LANES /* entries that are added up in fp32; their sums are added in fp64 */ };

typedef struct {
    float *x;              /* (rows, vocab) logits; become x − max, or its exponentials with 0 at the target */
    const int64_t *target; /* (rows,) */
    float *top;            /* (rows,) max x */
    float *own;            /* (rows,) x − max at the target */
    double *others;        /* (rows,) Σ e, e = exp(x − max), the target left out */
    double *energy;        /* (rows,) Σ (x − max) e, the target left out */
    long vocab, keep_exp;
} Statistics;

typedef struct {
    float *x;            /* (rows, vocab); becomes −p (a + b (log p + entropy)), log p = x − offset */
    const float *offset; /* (rows,), as the rest */
    const float *entropy, *a, *b;
    long vocab;
} Gradient;

static inline __mmask16 within(long left) { return left < LANES ? (__mmask16)((1u << left) - 1) : 0xffff; }

static float maximum(const float *x, long vocab) {
    __m512 top = _mm512_set1_ps(-__builtin_inff());
    for (long j = 0; j < vocab; j += LANES) top = _mm512_max_ps(top, _mm512_mask_loadu_ps(top, within(vocab - j), x + j));
    return _mm512_reduce_max_ps(top);
}

void statistics(const Statistics *s, long first, long last) {
    for (long i = first; i < last; i++) {
        float *x = s->x + i * s->vocab, *target = x + s->target[i];
        const __m512 top = _mm512_set1_ps(s->top[i] = maximum(x, s->vocab));
        s->own[i] = *target - s->top[i];
        *target = -__builtin_inff();
        s->others[i] = s->energy[i] = 0;
        for (long j = 0; j < s->vocab;) {
            const long end = j + PIECE < s->vocab ? j + PIECE : s->vocab;
            __m512 sum = _mm512_setzero_ps(), weighted = sum;
            for (; j < end; j += LANES) {
                const __mmask16 inside = within(end - j);
                const __m512 shifted = _mm512_sub_ps(_mm512_maskz_loadu_ps(inside, x + j), top);
                const __mmask16 seen = inside & counts(shifted);
                const __m512 e = _mm512_maskz_mov_ps(seen, exponential(shifted));
                sum = _mm512_add_ps(sum, e);
                weighted = _mm512_mask3_fmadd_ps(e, shifted, weighted, seen);
                _mm512_mask_storeu_ps(x + j, inside, s->keep_exp ? e : shifted);
            }
            s->others[i] += _mm512_reduce_add_ps(sum);
            s->energy[i] += _mm512_reduce_add_ps(weighted);
        }
        if (!s->keep_exp) *target = s->own[i];
    }
}

void gradient(const Gradient *g, long first, long last) {
    for (long i = first; i < last; i++) {
        const __m512 offset = _mm512_set1_ps(g->offset[i]), entropy = _mm512_set1_ps(g->entropy[i]);
        const __m512 a = _mm512_set1_ps(g->a[i]), b = _mm512_set1_ps(g->b[i]);
        float *x = g->x + i * g->vocab;
        for (long j = 0; j < g->vocab; j += LANES) {
            const __mmask16 inside = within(g->vocab - j);
            const __m512 logp = _mm512_sub_ps(_mm512_maskz_loadu_ps(inside, x + j), offset);
            const __m512 slope = _mm512_fmadd_ps(b, _mm512_add_ps(logp, entropy), a);
            const __m512 minus_p = _mm512_sub_ps(_mm512_setzero_ps(), exponential(logp));
            _mm512_mask_storeu_ps(x + j, inside, _mm512_maskz_mul_ps(counts(logp), minus_p, slope));
        }
    }
}
