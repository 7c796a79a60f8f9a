/* exp for AVX-512, and where it counts. */

#include <immintrin.h>

enum { LANES = 16 };

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

/* Where exp is a normal number, too large or unknown: a NaN stays, and so does what is too large. */
static inline __mmask16 counts(__m512 x) { return _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.f), _CMP_NLT_UQ); }
