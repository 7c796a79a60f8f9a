/* Softmax statistics, dlogits and dW of bf16 hidden states under a bf16 head, on a CPU with AMX: products, and what is
   done with them, a block at a time, so that no logit leaves the first-level cache. Built and called by amx.py.

   A block is 32 vocabulary entries × 32 rows, held as (entry, row). out is (vocab, rows), as the product that makes dW
   reads it: there the same loops run over 32 vocabulary entries × 32 columns of h. */

#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BLOCK = 32, TILE = 16, LANES = 16, CACHED = 1 << 20 /* bytes of left that stay in the second-level cache */ };

typedef struct {
    const uint16_t *left;  /* (vocab, width) bf16; width a multiple of 32, vocab at least 32 */
    const uint16_t *right; /* (rows/16, width/32, 16, 16, 2) bf16: tiles of pairs, as AMX reads its right operand */
    long vocab, width, rows; /* rows a multiple of 32 */
} Product;

typedef struct {
    const float *bias;     /* (vocab,) or NULL */
    const float *scale;    /* (rows,) 1/temperature */
    const int32_t *target; /* (rows,) */
} Head;

typedef struct {
    Head head;
    const float *reference; /* (rows,) exponentials and everything below are relative to it */
    double *others;         /* (rows,) Σ exp x, the target left out */
    double *energy;         /* (rows,) Σ x exp x, the target left out */
    float *top;             /* (rows,) max x */
    float *own;             /* (rows,) x at the target */
    uint16_t *out;          /* (vocab, rows) bf16 exp x, or NULL */
} Statistics;

typedef struct {
    Head head;
    const float *lse, *entropy; /* (rows,) */
    const float *a, *b;         /* (rows,) ∂L/∂logp and ∂L/∂H over the temperature */
    uint16_t *out;              /* (vocab, rows) bf16 −p (a + b (log p + H)) */
} Gradient;

typedef struct {
    uint16_t *rounded; /* (vocab, rows) bf16, or NULL */
    float *sum;        /* (vocab, rows) to be added to, if rounded is NULL */
} Sum;

typedef void Visit(const Product *, void *, long entry, long skip, long row, const float *z);

/* Linux lends the tiles' registers on request; 0 if it does. */
int request_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return (int)syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
}

static void configure_tiles(void) {
    struct { uint8_t palette, start, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) { shapes.row_bytes[i] = 64; shapes.rows[i] = TILE; }
    _tile_loadconfig(&shapes);
}

/* z = left · right of one block, from its first entry and row. */
static void multiply(const uint16_t *left, const uint16_t *right, long width, float *z) {
    const uint16_t *left_below = left + TILE * width, *right_beside = right + TILE * width;
    const long stride = width * (long)sizeof *left;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long k = 0; k < width; k += 32) {
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

/* All blocks of the entries first to last. The last block begins early enough to be whole, and skips what was seen. */
static void traverse(const Product *p, long first, long last, Visit *visit, void *own) {
    float z[BLOCK * BLOCK] __attribute__((aligned(64)));
    long tall = CACHED / (p->width * (long)sizeof *p->left) / BLOCK * BLOCK;
    if (tall < BLOCK) tall = BLOCK;
    configure_tiles();
    for (long a = first; a < last; a += tall) {
        const long end = a + tall < last ? a + tall : last;
        for (long row = 0; row < p->rows; row += BLOCK)
            for (long v = a; v < end; v += BLOCK) {
                const long entry = v + BLOCK <= p->vocab ? v : p->vocab - BLOCK;
                multiply(p->left + entry * p->width, p->right + row * p->width, p->width, z);
                visit(p, own, entry, v - entry, row, z);
            }
    }
    _tile_release();
    _mm_sfence(); /* another thread may read what was streamed */
}

/* exp of −87 to 87, a unit in the last place or so off: 2^n times the series of the rest. */
static inline __m512 exponential(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x); /* ln 2 in two parts */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    static const float inverse_factorials[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f};
    __m512 p = _mm512_set1_ps(1.f / 5040);
    for (int i = 0; i < 7; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(inverse_factorials[i]));
    return _mm512_scalef_ps(p, n);
}

static inline __m512 logits(const Head *h, long entry, const float *z, __m512 scale) {
    __m512 x = _mm512_load_ps(z);
    if (h->bias) x = _mm512_add_ps(x, _mm512_set1_ps(h->bias[entry]));
    return _mm512_mul_ps(x, scale);
}

/* Where exp is not 0 in fp32, or unknown: a NaN stays. */
static inline __mmask16 counts(__m512 x) { return _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.f), _CMP_NLT_UQ); }

/* One line of the cache, past it: nothing reads out before all of it is written. */
static inline void store(uint16_t *out, __m512 left, __m512 right) {
    _mm512_stream_si512((__m512i *)out, (__m512i)_mm512_cvtne2ps_pbh(right, left));
}

static void sum_block(const Product *p, void *own, long entry, long skip, long row, const float *z) {
    const Statistics *s = own;
    const Head *h = &s->head;
    float others[BLOCK], energy[BLOCK];
    __m512 e[BLOCK][2];
    for (int half = 0; half < 2; half++) {
        const long at = row + half * LANES;
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
        s->others[row + i] += others[i];
        s->energy[row + i] += energy[i];
    }
    if (s->out)
        for (long j = skip; j < BLOCK; j++) store(s->out + (entry + j) * p->rows + row, e[j][0], e[j][1]);
}

static void slope_block(const Product *p, void *own, long entry, long skip, long row, const float *z) {
    const Gradient *g = own;
    const Head *h = &g->head;
    __m512 d[BLOCK][2];
    for (int half = 0; half < 2; half++) {
        const long at = row + half * LANES;
        const __m512 scale = _mm512_loadu_ps(h->scale + at), lse = _mm512_loadu_ps(g->lse + at);
        const __m512 entropy = _mm512_loadu_ps(g->entropy + at);
        const __m512 a = _mm512_loadu_ps(g->a + at), b = _mm512_loadu_ps(g->b + at);
        for (long j = skip; j < BLOCK; j++) {
            const __m512 x = _mm512_sub_ps(logits(h, entry + j, z + j * BLOCK + half * LANES, scale), lse);
            const __m512 slope = _mm512_fmadd_ps(b, _mm512_add_ps(x, entropy), a);
            d[j][half] = _mm512_maskz_mul_ps(counts(x), _mm512_sub_ps(_mm512_setzero_ps(), exponential(x)), slope);
        }
    }
    for (long j = skip; j < BLOCK; j++) store(g->out + (entry + j) * p->rows + row, d[j][0], d[j][1]);
}

static void product_block(const Product *p, void *own, long entry, long skip, long row, const float *z) {
    const Sum *s = own;
    for (long j = skip; j < BLOCK; j++) {
        const long at = (entry + j) * p->rows + row;
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
