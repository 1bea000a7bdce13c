/* Group norm and SiLU of bfloat16 pictures with their channels last, for quick.py.

       y = f(w (x + e - mean) / std + b),  f(z) = z sigmoid(z) or z,

   mean and std over the N pixels and the C / G channels of a group. x, y, dx and dy are (B, N, C) in bfloat16; e (B, C,
   or none), w and b (C), mean and rstd (B, G), de, dw and db (B, C) in float, in which everything is computed. A
   picture is one thread's: what it finds does not depend on how many there are. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define MOST 4096 /* channels; arrays of a fixed size are what compilers turn into vectors */
#define EACH(i, count) for (long i = 0; i < (count); i++)

static inline float widen(uint16_t v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* to the nearest, ties to even; what is no number stays none, as arithmetic sets but the high bits of those */
static inline uint16_t narrow(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)rounded;
}

/* 1 / (1 + 2^z), z = -x / ln 2, by its whole part and Taylor's series of the rest: plain arithmetic, which compilers
   turn into vectors. Wrong by at most 3e-6 of itself, a thousandth of bfloat16's step. */
static inline float sigmoid(float x) {
    float z = x * -1.44269504f;
    z = z > 126 ? 126 : z;
    z = z < -126 ? -126 : z;
    float whole = rintf(z), f = z - whole;
    float series = 1 + f * (0.69314718f + f * (0.24022651f + f * (0.05550411f + f * (0.00961813f + f * 0.00133336f))));
    int32_t bits = ((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return 1 / (1 + series * power);
}

void forward(const uint16_t *x, const float *e, uint16_t *y, const float *w, const float *b, float *mean, float *rstd,
             long B, long N, long C, long G, float eps, int silu) {
    long D = C / G;
#pragma omp parallel for
    EACH(i, B) {
        float s[MOST], q[MOST], m[MOST];
        const uint16_t *xi = x + i * N * C;
        uint16_t *yi = y + i * N * C;
        EACH(c, C) s[c] = q[c] = 0;
        EACH(n, N) EACH(c, C) s[c] += widen(xi[n * C + c]);
        EACH(g, G) {
            float sum = 0;
            EACH(d, D) sum += s[g * D + d] / N + (e ? e[i * C + g * D + d] : 0);
            mean[i * G + g] = sum / D;
            EACH(d, D) m[g * D + d] = sum / D - (e ? e[i * C + g * D + d] : 0);
        }
        EACH(n, N) EACH(c, C) {
            float v = widen(xi[n * C + c]) - m[c];
            q[c] += v * v;
        }
        EACH(g, G) {
            float sum = 0;
            EACH(d, D) sum += q[g * D + d];
            float r = rstd[i * G + g] = 1 / sqrtf(sum / (N * D) + eps);
            EACH(d, D) {
                long c = g * D + d;
                s[c] = r * w[c];
                q[c] = b[c] - m[c] * s[c];
            }
        }
        if (silu) EACH(n, N) EACH(c, C) {
            float z = widen(xi[n * C + c]) * s[c] + q[c];
            yi[n * C + c] = narrow(z * sigmoid(z));
        }
        else EACH(n, N) EACH(c, C) yi[n * C + c] = narrow(widen(xi[n * C + c]) * s[c] + q[c]);
    }
}

/* With g = dy f'(z), v = x + e - mean, r = 1 / std and means over a group:
   dx = r w g - r mean(w g) - r^2 v mean(w g r v),  dw = sum g r v,  db = sum g,  de = sum over pixels of dx. */
void backward(const uint16_t *x, const float *e, const uint16_t *dy, uint16_t *dx, const float *w, const float *b,
              const float *mean, const float *rstd, float *de, float *dw, float *db, long B, long N, long C, long G,
              int silu) {
    long D = C / G;
#pragma omp parallel for
    EACH(i, B) {
        float m[MOST], s[MOST], h[MOST], v_sum[MOST], g_sum[MOST], gv_sum[MOST];
        const uint16_t *xi = x + i * N * C, *gi = dy + i * N * C;
        uint16_t *out = dx + i * N * C;
        EACH(c, C) {
            m[c] = mean[i * G + c / D] - (e ? e[i * C + c] : 0);
            s[c] = rstd[i * G + c / D] * w[c];
            h[c] = b[c] - m[c] * s[c];
            v_sum[c] = g_sum[c] = gv_sum[c] = 0;
        }
        EACH(n, N) EACH(c, C) {
            float a = widen(xi[n * C + c]), v = a - m[c], g = widen(gi[n * C + c]);
            if (silu) {
                float z = a * s[c] + h[c], p = sigmoid(z);
                g *= p * (1 + z * (1 - p));
                out[n * C + c] = narrow(g);
            }
            v_sum[c] += v;
            g_sum[c] += g;
            gv_sum[c] += g * v;
        }
        EACH(k, G) {
            float r = rstd[i * G + k], plain = 0, along = 0;
            EACH(d, D) {
                long c = k * D + d;
                db[i * C + c] = g_sum[c];
                dw[i * C + c] = gv_sum[c] * r;
                plain += w[c] * g_sum[c];
                along += w[c] * gv_sum[c] * r;
            }
            plain *= r / (N * D);
            along *= r * r / (N * D);
            EACH(d, D) {
                long c = k * D + d;
                if (de) de[i * C + c] = s[c] * g_sum[c] - N * plain - along * v_sum[c];
                v_sum[c] = along;
                g_sum[c] = along * m[c] - plain;
            }
        }
        EACH(n, N) EACH(c, C) {
            float a = widen(xi[n * C + c]), g = widen(silu ? out[n * C + c] : gi[n * C + c]);
            out[n * C + c] = narrow(s[c] * g - v_sum[c] * a + g_sum[c]);
        }
    }
}
