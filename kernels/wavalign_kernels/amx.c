/* Softmax statistics, dlogits and dW of bf16 hidden states under a bf16 head, on a CPU with AMX: products, and what is
   done with them, a block at a time, so that no logit leaves the first-level cache. Built and called by amx.py.

   left · right is made in blocks of 32 × 32: entries of the vocabulary, and columns, which are
       rows of h        where left is W (V, H) and right is hᵀ: logits, depth H,
       columns of h     where left is the dlogits (V, C) and right is h: dW, depth C.
   Exponentials and dlogits are stored as (V, C), as the second reads them. */

#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "exponential.h"

enum { BLOCK = 32, TILE = 16, CACHED = 1 << 20 /* bytes of left that stay in the second-level cache */ };

typedef struct {
    const uint16_t *left;  /* (vocab, depth) bf16; depth a multiple of 32, vocab at least 32 */
    const uint16_t *right; /* (columns/16, depth/32, 16, 16, 2) bf16: tiles of pairs, as AMX reads its right operand */
    long vocab, depth, columns; /* columns a multiple of 32 */
} Product;

typedef struct {
    const float *bias;     /* (vocab,) or NULL */
    const float *scale;    /* (columns,) 1/temperature */
    const int32_t *target; /* (columns,) */
} Head;

typedef struct {
    Head head;
    const float *reference; /* (columns,) exponentials and everything below are relative to it */
    double *others;         /* (columns,) Σ exp x, the target left out */
    double *energy;         /* (columns,) Σ x exp x, the target left out */
    float *top;             /* (columns,) max x */
    float *own;             /* (columns,) x at the target */
    uint16_t *out;          /* (vocab, columns) bf16 exp x, or NULL */
} Statistics;

typedef struct {
    Head head;
    const float *lse, *entropy; /* (columns,) */
    const float *a, *b;         /* (columns,) ∂L/∂logp and ∂L/∂H over the temperature */
    uint16_t *out;              /* (vocab, columns) bf16 −p (a + b (log p + H)) */
} Gradient;

typedef struct {
    uint16_t *rounded; /* (vocab, columns) bf16, or NULL */
    float *sum;        /* (vocab, columns) to be added to, if rounded is NULL */
} Sum;

typedef void Visit(const Product *, void *, long entry, long skip, long column, const float *z);

/* Linux lends the tiles' registers on request; 0 if it does. */
int request_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return (int)syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
}

static void configure_tiles(void) {
    struct { uint8_t palette, start, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) { shapes.row_bytes[i] = 64; shapes.rows[i] = TILE; }
    __asm__ volatile("" : : "r"(&shapes) : "memory"); /* gcc before 14 thinks that 8 bytes are read (PR 114098) */
    _tile_loadconfig(&shapes);
}

/* z = left · right of one block, from its first entry and column. */
static void multiply(const uint16_t *left, const uint16_t *right, long depth, float *z) {
    const uint16_t *left_below = left + TILE * depth, *right_beside = right + TILE * depth;
    const long stride = depth * (long)sizeof *left;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long k = 0; k < depth; k += 32) {
        _tile_loadd(4, left + k, stride);
        _tile_loadd(5, left_below + k, stride);
        _tile_loadd(6, right + TILE * k, 64);
        _tile_loadd(7, right_beside + TILE * k, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, z, sizeof *z * BLOCK);
    _tile_stored(1, z + TILE, sizeof *z * BLOCK);
    _tile_stored(2, z + TILE * BLOCK, sizeof *z * BLOCK);
    _tile_stored(3, z + TILE * BLOCK + TILE, sizeof *z * BLOCK);
}

/* All blocks of the entries first to last: of as many entries as the second-level cache holds, all columns, 32 at a
   time. The last block begins early enough to be whole, and skips what was seen. */
static void traverse(const Product *p, long first, long last, Visit *visit, void *task) {
    float z[BLOCK * BLOCK] __attribute__((aligned(64)));
    long tall = CACHED / (p->depth * (long)sizeof *p->left) / BLOCK * BLOCK;
    if (tall < BLOCK) tall = BLOCK;
    configure_tiles();
    for (long a = first; a < last; a += tall) {
        const long end = a + tall < last ? a + tall : last;
        for (long column = 0; column < p->columns; column += BLOCK)
            for (long v = a; v < end; v += BLOCK) {
                const long entry = v + BLOCK <= p->vocab ? v : p->vocab - BLOCK;
                multiply(p->left + entry * p->depth, p->right + column * p->depth, p->depth, z);
                visit(p, task, entry, v - entry, column, z);
            }
    }
    _tile_release();
    _mm_sfence(); /* another thread may read what was streamed */
}

static inline __m512 logits(const Head *h, long entry, const float *z, __m512 scale) {
    __m512 x = _mm512_load_ps(z);
    if (h->bias) x = _mm512_add_ps(x, _mm512_set1_ps(h->bias[entry]));
    return _mm512_mul_ps(x, scale);
}

/* One line of the cache, past it: nothing reads out before all of it is written. */
static inline void store(uint16_t *out, __m512 left, __m512 right) {
    _mm512_stream_si512((__m512i *)out, (__m512i)_mm512_cvtne2ps_pbh(right, left));
}

static void sum_block(const Product *p, void *task, long entry, long skip, long column, const float *z) {
    const Statistics *s = task;
    const Head *h = &s->head;
    float others[BLOCK], energy[BLOCK];
    __m512 e[BLOCK][2];
    for (int half = 0; half < 2; half++) {
        const long at = column + half * LANES;
        const __m512 scale = _mm512_loadu_ps(h->scale + at), reference = _mm512_loadu_ps(s->reference + at);
        const __m512i target = _mm512_loadu_si512(h->target + at);
        __m512 sum = _mm512_setzero_ps(), weighted = sum;
        __m512 top = _mm512_loadu_ps(s->top + at), mine = _mm512_loadu_ps(s->own + at);
        for (long j = skip; j < BLOCK; j++) {
            const __m512 x = _mm512_sub_ps(logits(h, entry + j, z + j * BLOCK + half * LANES, scale), reference);
            const __mmask16 is_target = _mm512_cmpeq_epi32_mask(target, _mm512_set1_epi32((int)(entry + j)));
            const __mmask16 seen = ~is_target & counts(x);
            top = _mm512_max_ps(top, x);
            mine = _mm512_mask_mov_ps(mine, is_target, x);
            e[j][half] = _mm512_maskz_mov_ps(seen, exponential(x));
            sum = _mm512_add_ps(sum, e[j][half]);
            weighted = _mm512_mask3_fmadd_ps(e[j][half], x, weighted, seen);
        }
        _mm512_storeu_ps(s->top + at, top);
        _mm512_storeu_ps(s->own + at, mine);
        _mm512_storeu_ps(others + half * LANES, sum);
        _mm512_storeu_ps(energy + half * LANES, weighted);
    }
    for (long i = 0; i < BLOCK; i++) {
        s->others[column + i] += others[i];
        s->energy[column + i] += energy[i];
    }
    if (s->out)
        for (long j = skip; j < BLOCK; j++) store(s->out + (entry + j) * p->columns + column, e[j][0], e[j][1]);
}

static void slope_block(const Product *p, void *task, long entry, long skip, long column, const float *z) {
    const Gradient *g = task;
    const Head *h = &g->head;
    __m512 d[BLOCK][2];
    for (int half = 0; half < 2; half++) {
        const long at = column + half * LANES;
        const __m512 scale = _mm512_loadu_ps(h->scale + at), lse = _mm512_loadu_ps(g->lse + at);
        const __m512 entropy = _mm512_loadu_ps(g->entropy + at);
        const __m512 a = _mm512_loadu_ps(g->a + at), b = _mm512_loadu_ps(g->b + at);
        for (long j = skip; j < BLOCK; j++) {
            const __m512 x = _mm512_sub_ps(logits(h, entry + j, z + j * BLOCK + half * LANES, scale), lse);
            const __m512 slope = _mm512_fmadd_ps(b, _mm512_add_ps(x, entropy), a);
            d[j][half] = _mm512_maskz_mul_ps(counts(x), _mm512_sub_ps(_mm512_setzero_ps(), exponential(x)), slope);
        }
    }
    for (long j = skip; j < BLOCK; j++) store(g->out + (entry + j) * p->columns + column, d[j][0], d[j][1]);
}

static void product_block(const Product *p, void *task, long entry, long skip, long column, const float *z) {
    const Sum *s = task;
    for (long j = skip; j < BLOCK; j++) {
        const long at = (entry + j) * p->columns + column;
        const __m512 left = _mm512_load_ps(z + j * BLOCK), right = _mm512_load_ps(z + j * BLOCK + LANES);
        if (s->rounded) {
            store(s->rounded + at, left, right);
        } else {
            _mm512_storeu_ps(s->sum + at, _mm512_add_ps(_mm512_loadu_ps(s->sum + at), left));
            _mm512_storeu_ps(s->sum + at + LANES, _mm512_add_ps(_mm512_loadu_ps(s->sum + at + LANES), right));
        }
    }
}

void statistics(const Product *p, Statistics *s, long first, long last) { traverse(p, first, last, sum_block, s); }

void gradient(const Product *p, Gradient *g, long first, long last) { traverse(p, first, last, slope_block, g); }

void product(const Product *p, Sum *s, long first, long last) { traverse(p, first, last, product_block, s); }
